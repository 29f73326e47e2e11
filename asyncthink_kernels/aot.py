"""``python -m asyncthink_kernels.aot``: compiles every Triton kernel for every GPU, and says what each takes of it.

Needs no GPU. What was compiled before is taken from a table in the package, by a key of the source and all settings.
Exit code 1: a variant spills registers, asks for more shared memory than there is, or does not compile; or, with
``--check``, the table is not what the code demands; or, with ``--sample``, a fresh compilation differs from the table.
Exit code 2: bad usage.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from asyncthink_kernels._aot_pool import ROOM, Job, compile_all, variants
from asyncthink_kernels._aot_records import Record, Records, aligned, detail_rows, page, summary_rows, write_whole
from asyncthink_kernels.backends._resources import SHARED_LIMIT, Resources

_OPS = ("append_kv", "copy_pages", "join_append", "merge_states", "paged_attention", "tree_attention")
#: Where variants come from: each module has ``variants(arch) -> list[Variant]``.
MODULES = tuple(f"{ROOM}.{op}" for op in _OPS)
RECORDS = Path(__file__).parent / "backends/triton/resources.json"
PAGE = Path(__file__).parents[1] / "docs/kernels.md"


@dataclass(frozen=True)
class Wanted:
    """A variant that the code can launch, and what its key is under the table's version of Triton."""

    job: Job
    kernel: str
    warps: int
    stages: int
    table_key: str

    @property
    def label(self) -> str:
        return f"{self.job.name} on {self.job.arch}"

    def record(self, resources: Resources) -> Record:
        return Record(self.job.name, self.job.arch, self.job.key, self.kernel, self.warps, self.stages, resources)


@dataclass
class Outcome:
    """What a run found: records, those of them that were compiled now, what is wrong, and what one should know."""

    triton: str
    records: list[Record] = field(default_factory=list)
    compiled: int = 0
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    options = _parser().parse_args(arguments)
    try:
        outcome = _run(options)
    except (ImportError, OSError, ValueError) as error:
        print(f"aot: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("aot: interrupted", file=sys.stderr)
        return 130
    _show(outcome, options)
    return 1 if outcome.problems else 0


def _parser() -> argparse.ArgumentParser:
    text = "Compiles every Triton kernel for every GPU, and says what each takes of it."
    parser = argparse.ArgumentParser(prog="python -m asyncthink_kernels.aot", description=text)
    parser.add_argument("--arch", action="append", choices=list(SHARED_LIMIT), help="this target only (repeatable)")
    parser.add_argument("--match", type=_regex, default="", help="only variants in whose name this regex is found")
    parser.add_argument("--jobs", type=_positive, default=len(os.sched_getaffinity(0)), help="processes")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--check", action="store_true", help="compile nothing; is the table complete and without faults?")
    mode.add_argument("--sample", action="store_true", help="compile a few variants anew: as the table has them?")
    mode.add_argument("--update", action="store_true", help="rewrite the table and its page")
    parser.add_argument("--fresh", action="store_true", help="take nothing from the table")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--module", action="append", help="take variants from this module instead (repeatable)")
    parser.add_argument("--records", type=Path, default=RECORDS, help="the table")
    parser.add_argument("--page", type=Path, default=PAGE, help="its readable form, written beside it")
    return parser


def _regex(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no regular expression: {error}") from error


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of processes, got {text!r}")
    return int(text)


def _run(options: argparse.Namespace) -> Outcome:
    compiler = importlib.import_module(f"{ROOM}._compile")
    if importlib.import_module(f"{ROOM}._launch").INTERPRETED:
        raise ValueError("TRITON_INTERPRET is set, and interpreted kernels cannot be compiled: unset it")
    if options.update and not options.page.parent.is_dir():
        raise ValueError(f"--update writes {options.page}, and there is no such folder: run it in a source checkout")
    version: str = compiler.triton.__version__
    table = Records.load(options.records) if options.records.exists() else Records(version, ())
    wanted = _wanted(options.module or MODULES, compiler.key, version, table.triton)
    chosen = [w for w in wanted if w.job.arch in (options.arch or SHARED_LIMIT) and options.match.search(w.job.name)]
    outcome = Outcome(version)
    if table.triton != version:
        outcome.notes.append(
            f"{options.records.name} was compiled by Triton {table.triton}, this is Triton {version}: its figures "
            "do not hold here, so everything that this run is about is compiled"
        )
    if options.check:
        outcome.problems += _differences(chosen, table, options)
    if options.sample:
        chosen = _sample(chosen)
    held = {record.key: record for record in table.records}
    known = {} if options.fresh or options.sample else held
    outcome.records = [known[each.job.key] for each in chosen if each.job.key in known]
    if not options.check or table.triton != version:
        keep = {each.job.key: held[each.job.key] for each in wanted if each.job.key in held}
        _compile([each for each in chosen if each.job.key not in known], outcome, keep, options)
    if options.sample and table.triton == version:
        outcome.problems += _surprises(outcome.records, table)
    outcome.problems += [f"{r.name} on {r.arch}: {', '.join(r.faults)}" for r in outcome.records if r.faults]
    return outcome


def _wanted(modules: Sequence[str], key: Callable[..., str], version: str, table_version: str) -> list[Wanted]:
    found = []
    for module in modules:
        for arch in SHARED_LIMIT:
            for each in variants(module, arch).values():
                job = Job(module, arch, each.name, key(each, arch, version))
                table_key = key(each, arch, table_version)
                found.append(Wanted(job, each.kernel.__name__, each.num_warps, each.num_stages, table_key))
    if len({each.job.key for each in found}) != len(found):
        raise ValueError("two modules have variants of one name")
    return found


def _sample(chosen: Iterable[Wanted]) -> list[Wanted]:
    """One variant a kernel and target, another one whenever the kernel changes."""
    first: dict[tuple[str, str], Wanted] = {}
    for each in sorted(chosen, key=lambda each: each.job.key):
        first.setdefault((each.kernel, each.job.arch), each)
    return list(first.values())


def _compile(todo: Sequence[Wanted], outcome: Outcome, keep: dict[str, Record], options: argparse.Namespace) -> None:
    """Compiles ``todo``; with --update the table is written after each, so that an interrupted run was not in vain."""
    by_job = {each.job: each for each in todo}
    new: dict[str, Record] = {}

    def merged() -> Records:
        return Records.of(outcome.triton, (keep | new).values())

    def done(job: Job, found: Resources | str) -> None:
        if isinstance(found, str):
            outcome.problems.append(f"{by_job[job].label} does not compile: {found}")
            return
        new[job.key] = by_job[job].record(found)
        if options.update:
            write_whole(options.records, merged().to_text())

    compile_all([each.job for each in todo], options.jobs, done)
    outcome.records += new.values()
    outcome.compiled = len(todo)
    if options.update:
        write_whole(options.records, merged().to_text())
        write_whole(options.page, page(merged()))


def _differences(chosen: Sequence[Wanted], table: Records, options: argparse.Namespace) -> list[str]:
    """Where the table is not what the code demands, in whichever version of Triton it was compiled."""
    held = {record.key: record for record in table.records}
    demanded = {each.table_key for each in chosen}
    found = [f"{each.label} is not in {options.records.name}" for each in chosen if each.table_key not in held]
    for record in table.records:
        asked = record.arch in (options.arch or SHARED_LIMIT) and options.match.search(record.name)
        if asked and record.key not in demanded:
            found.append(f"{record.name} on {record.arch} in {options.records.name} is out of date")
    if options.page.exists() and options.page.read_text() != page(table):  # a wheel has none
        found.append(f"{options.page.name} is not what {options.records.name} says")
    if found:
        found.append("run python -m asyncthink_kernels.aot --update")
    return found


def _surprises(records: Iterable[Record], table: Records) -> list[str]:
    """Where a fresh compilation is not what the table says."""
    held = {record.key: asdict(record.resources) for record in table.records}
    found = []
    for record in records:
        told = held.get(record.key)
        if told is None:
            found.append(f"{record.name} on {record.arch} is not in the table")
            continue
        now = asdict(record.resources)
        changed = [f"{name} {now[name]}, the table says {told[name]}" for name in now if now[name] != told[name]]
        found += [f"{record.name} on {record.arch}: {text}" for text in changed]
    return found


def _show(outcome: Outcome, options: argparse.Namespace) -> None:
    records = Records.of(outcome.triton, outcome.records).records
    if options.json:
        lines = [json.loads(record.to_line()) | {"faults": record.faults} for record in records]
        content = asdict(outcome) | {"records": lines}
        print(json.dumps(content))
        return
    if records and not options.check:
        print(aligned(detail_rows(records)), end="\n\n")
    if records:
        print(aligned(summary_rows(records)), end="\n\n")
    for text in [*outcome.notes, *outcome.problems]:
        print(text)
    told = f"{len(records)} variants and targets, {outcome.compiled} compiled now by Triton {outcome.triton}"
    print(f"{told}, {len(outcome.problems)} problems" if outcome.problems else f"{told}: nothing spills, all fits")


if __name__ == "__main__":
    sys.exit(main())
