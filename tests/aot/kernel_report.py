"""`python tests/aot/kernel_report.py`: compiles every Triton kernel for every GPU, and says what each takes of it.

Needs no GPU. Without a mode it compiles the variants asked for and lists them. `--update` compiles the kernels whose
source or settings changed and writes docs/kernels.md, `--check` compiles nothing and compares that page with the code,
`--sample` compiles one variant of each kernel for each target and compares it with the page.
Exit code 1: a variant spills registers, needs more shared memory than there is or does not compile, or the page is not
what the code demands. Exit code 2: bad usage.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import multiprocessing
import os
import re
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton

import triton_compile
from asyncthink.files import write_whole
from gpu_resources import SHARED_LIMIT, Resources, faults
from kernel_page import Page, Row, aligned, detail_cells

OPS = ("append_kv", "copy_pages", "join_append", "merge_states", "paged_attention", "tree_attention")
MODULES = tuple(f"asyncthink_kernels.backends.triton.{op}" for op in OPS)  # each has variants(arch) -> list[Variant]
PAGE = Path(__file__).parents[2] / "docs/kernels.md"
_LONGEST = 400  # characters of an error that are shown


@dataclass(frozen=True, order=True)
class Job:
    """Variant ``name`` of those that ``module`` has for ``arch``: kernels themselves cannot travel to a process."""

    module: str
    arch: str
    name: str

    @property
    def variant(self) -> Any:
        (found,) = (each for each in importlib.import_module(self.module).variants(self.arch) if each.name == self.name)
        return found

    def __str__(self) -> str:
        return f"{self.name} on {self.arch}"


@dataclass(frozen=True)
class Group:
    """All variants of one kernel for one target: a row of the page."""

    kernel: str
    arch: str
    jobs: tuple[Job, ...]

    def key(self, version: str) -> str:
        """Sixteen hexadecimal digits that change with any variant's key under Triton ``version``."""
        keys = sorted(triton_compile.key(job.variant, self.arch, version) for job in self.jobs)
        return hashlib.sha256("".join(keys).encode()).hexdigest()[:16]


def groups(modules: Sequence[str]) -> dict[tuple[str, str], Group]:
    """By kernel and target. Raises ValueError where two variants have one name."""
    jobs: dict[tuple[str, str], list[Job]] = {}
    for arch in SHARED_LIMIT:
        for module in modules:
            for variant in importlib.import_module(module).variants(arch):
                jobs.setdefault((variant.kernel.__name__, arch), []).append(Job(module, arch, variant.name))
    every = [(job.arch, job.name) for found in jobs.values() for job in found]
    if len(set(every)) != len(every):
        twice = sorted({name for arch, name in every if every.count((arch, name)) > 1})
        raise ValueError(f"names of variants must differ, got {', '.join(twice)} more than once")
    return {place: Group(*place, tuple(found)) for place, found in sorted(jobs.items())}


def compile_all(jobs: Sequence[Job], processes: int) -> Iterator[tuple[Job, Resources | str]]:
    """Each job with what it takes, or the error that it ended in.

    A crash of the compiler ends its process and all that share the pool: the jobs left then run one by one.
    """
    spawn = multiprocessing.get_context("spawn")
    left = dict.fromkeys(jobs)
    with ProcessPoolExecutor(processes, spawn) as pool:
        futures = {pool.submit(compile_job, job): job for job in jobs}
        try:
            for future in as_completed(futures):
                if not isinstance(future.exception(), BrokenProcessPool):
                    del left[futures[future]]
                    yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    for job in left:
        with ProcessPoolExecutor(1, spawn) as pool:
            try:
                yield job, pool.submit(compile_job, job).result()
            except BrokenProcessPool:
                yield job, "the compiler crashed"


def compile_job(job: Job) -> Resources | str:
    """Any exception becomes text: all are listed, and not every exception of Triton's can be pickled."""
    try:
        return triton_compile.compile_variant(job.variant, job.arch)
    except Exception as error:
        text = f"{type(error).__name__}: {' '.join(str(error).split())}"
        half = _LONGEST // 2
        return text if len(text) <= _LONGEST else f"{text[:half]} ... {text[-half:]}"


def compiled(jobs: Sequence[Job], processes: int, problems: list[str]) -> Iterator[tuple[Job, Resources]]:
    """The jobs that compile; what is wrong with them and with the others goes to ``problems``."""
    for number, (job, found) in enumerate(compile_all(jobs, processes), 1):
        if number % 50 == 0:
            print(f"{number} of {len(jobs)} compiled", file=sys.stderr, flush=True)
        if isinstance(found, str):
            problems.append(f"{job} does not compile: {found}")
            continue
        problems += [f"{job}: {fault}" for fault in faults(found, job.arch)]
        yield job, found


def listing(wanted: Sequence[Group], options: argparse.Namespace) -> list[str]:
    """Compile the variants asked for and print what each takes; returns what is wrong."""
    problems: list[str] = []
    archs = options.arch or SHARED_LIMIT
    jobs = [job for group in wanted for job in group.jobs if job.arch in archs and options.match.search(job.name)]
    found = dict(compiled(jobs, options.jobs, problems))
    print(aligned([detail_cells(job.name, job.arch, job.variant, found[job]) for job in sorted(found)]))
    return problems


def update(wanted: Sequence[Group], options: argparse.Namespace) -> list[str]:
    """Compile the groups that changed, and write the page after each: an interrupted run was not in vain."""
    page, version = Page.read(options.page), triton.__version__
    keys = {(group.kernel, group.arch): group.key(version) for group in wanted}
    kept = [] if options.fresh else [row for row in page.rows if keys.get((row.kernel, row.arch)) == row.key]
    done = {(row.kernel, row.arch) for row in kept}
    problems = [fault for row in kept for fault in row.faults]
    left = {(group.kernel, group.arch): dict.fromkeys(group.jobs) for group in wanted}
    todo = [group for group in wanted if (group.kernel, group.arch) not in done]
    where = {job: group for group in todo for job in group.jobs}
    found: dict[Job, Resources] = {}
    for job, resources in compiled([*where], options.jobs, problems):
        found[job], group = resources, where[job]
        place = (group.kernel, group.arch)
        del left[place][job]
        if not left[place]:
            kept.append(Row.of(*place, [found[each] for each in group.jobs], keys[place]))
            write_whole(options.page, Page(version, kept).text())
    write_whole(options.page, Page(version, kept).text())
    print(f"{options.page.name}: {len(where)} compiled by Triton {version}, {sum(row.variants for row in kept)} in all")
    return problems


def check(wanted: Sequence[Group], options: argparse.Namespace) -> list[str]:
    """Where the page is not what the code demands, in whichever version of Triton it was made."""
    page, name = Page.read(options.page), options.page.name
    rows = {(row.kernel, row.arch): row for row in page.rows}
    demanded = {(group.kernel, group.arch): group.key(page.triton) for group in wanted}
    problems = [f"{kernel} on {arch} is not in {name}" for kernel, arch in demanded.keys() - rows.keys()]
    problems += [
        f"{kernel} on {arch} in {name} is out of date"
        for (kernel, arch), row in rows.items()
        if demanded.get((kernel, arch)) != row.key
    ]
    if options.page.exists() and options.page.read_text(encoding="utf-8") != page.text():
        problems.append(f"{name} differs from what is written around its rows")
    if problems:
        problems.append("run python tests/aot/kernel_report.py --update")
    return problems + [fault for row in page.rows for fault in row.faults]


def sample(wanted: Sequence[Group], options: argparse.Namespace) -> list[str]:
    """Compile one variant a group, another one whenever the kernel changes; does it stay within the page's figures?"""
    page, problems = Page.read(options.page), list[str]()
    rows = {(row.kernel, row.arch): row for row in page.rows if page.triton == triton.__version__}
    chosen = {min(group.jobs, key=lambda job: triton_compile.key(job.variant, job.arch)): group for group in wanted}
    for job, resources in compiled([*chosen], options.jobs, problems):
        row = rows.get((chosen[job].kernel, job.arch))
        problems += [f"{job}: {text}" for text in (row.exceeded_by(resources) if row else ())]
    print(f"{len(chosen)} compiled by Triton {triton.__version__}, the page by {page.triton}")
    return problems


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    options = _parser().parse_args(arguments)
    if triton.knobs.runtime.interpret:
        print("TRITON_INTERPRET is set, and interpreted kernels cannot be compiled: unset it", file=sys.stderr)
        return 2
    try:
        problems = options.mode([*groups(options.module or MODULES).values()], options)
    except (ImportError, OSError, ValueError) as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 2
    print("\n".join(problems) if problems else "nothing spills, all fits")
    return int(bool(problems))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python tests/aot/kernel_report.py", description=__doc__.partition("\n")[0])
    mode = parser.add_mutually_exclusive_group()
    for name, run in (("check", check), ("sample", sample), ("update", update)):
        text = (run.__doc__ or "").partition("\n")[0]
        mode.add_argument(f"--{name}", dest="mode", action="store_const", const=run, default=listing, help=text)
    parser.add_argument("--arch", action="append", choices=list(SHARED_LIMIT), help="list this target only")
    parser.add_argument("--match", type=_regex, default="", help="list variants in whose name this regex is found")
    parser.add_argument("--fresh", action="store_true", help="with --update: compile what did not change, too")
    parser.add_argument("--jobs", type=_positive, default=len(os.sched_getaffinity(0)), help="processes")
    parser.add_argument("--module", action="append", help="take variants from this module instead (repeatable)")
    parser.add_argument("--page", type=Path, default=PAGE, help="the page (docs/kernels.md)")
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


if __name__ == "__main__":
    sys.exit(main())
