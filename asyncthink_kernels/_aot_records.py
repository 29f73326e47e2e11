"""What :mod:`asyncthink_kernels.aot` found out and keeps: one record a kernel variant and architecture."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from asyncthink_kernels.backends._resources import SHARED_LIMIT, Resources, faults


@dataclass(frozen=True)
class Record:
    """The resources of variant ``name`` of ``kernel`` on ``arch``; ``key`` stands for all that they follow from."""

    name: str
    arch: str
    key: str
    kernel: str
    warps: int
    stages: int
    resources: Resources

    @property
    def order(self) -> tuple[str, str, int]:
        return self.kernel, self.name, list(SHARED_LIMIT).index(self.arch)

    @property
    def faults(self) -> list[str]:
        return faults(self.resources, self.arch)

    @property
    def remarks(self) -> list[str]:
        """What is no fault, and worth knowing."""
        lanes = self.resources.lanes
        return [*([f"{lanes} in lanes"] if lanes else []), *self.resources.warnings]

    def to_line(self) -> str:
        fields = asdict(self)
        return json.dumps(fields | fields.pop("resources"))


@dataclass(frozen=True)
class Records:
    """Records in order, and the version of Triton that compiled them."""

    triton: str
    records: tuple[Record, ...]

    @classmethod
    def load(cls, path: Path) -> Records:
        """Raises OSError, or ValueError where the file holds something else."""
        try:
            content = json.loads(path.read_text())
            return cls(content["triton"], tuple(_record(each) for each in content["records"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is no table of resources: {type(error).__name__} {error}") from error

    @classmethod
    def of(cls, triton: str, records: Iterable[Record]) -> Records:
        return cls(triton, tuple(sorted(records, key=lambda record: record.order)))

    def to_text(self) -> str:
        """JSON with a line a record, for readable diffs."""
        lines = ",\n".join(record.to_line() for record in self.records)
        return f'{{"triton": {json.dumps(self.triton)}, "records": [\n{lines}\n]}}\n'


def _record(fields: dict[str, object]) -> Record:
    own = {name: fields.pop(name) for name in ("name", "arch", "key", "kernel", "warps", "stages")}
    fields["warnings"] = tuple(fields["warnings"])  # type: ignore[arg-type]
    return Record(**own, resources=Resources(**fields))  # type: ignore[arg-type]


def write_whole(path: Path, text: str) -> None:
    """All of the file or nothing."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with open(handle, "w") as file:
            file.write(text)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns of text, the first row being their heads."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def summary_rows(records: Iterable[Record]) -> list[list[str]]:
    """A row a kernel and architecture: how many variants, and the most that any of them takes."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in sorted(records, key=lambda record: (record.kernel, list(SHARED_LIMIT).index(record.arch))):
        groups.setdefault((record.kernel, record.arch), []).append(record)
    rows = [["kernel", "target", "variants", "registers", "shared KiB", "of", "spilling", "matrix instructions"]]
    for (kernel, arch), group in groups.items():
        found = [record.resources for record in group]
        kinds = sorted({kind for each in found for kind in each.mma.split("+")} - {"none"})
        rows.append(
            [
                kernel,
                arch,
                str(len(group)),
                str(max(each.registers for each in found)),
                _kib(max(each.shared for each in found)),
                _kib(SHARED_LIMIT[arch]),
                str(sum(bool(each.spills or each.local) for each in found)),
                ", ".join(kinds) or "none",
            ]
        )
    return rows


def detail_rows(records: Iterable[Record]) -> list[list[str]]:
    rows = [["variant", "target", "warps", "stages", "registers", "spills", "shared KiB", "mma", "16-byte loads", ""]]
    for record in records:
        found = record.resources
        loads = f"{found.wide} of {found.wide + found.narrow}"
        numbers = [record.warps, record.stages, found.registers, found.spills]
        rows.append(
            [
                record.name,
                record.arch,
                *map(str, numbers),
                _kib(found.shared),
                found.mma,
                loads,
                ", ".join(record.remarks),
            ]
        )
    return rows


def page(table: Records) -> str:
    """``docs/kernels.md``: the summary, then a row a variant with a cell an architecture."""
    parts = [
        _INTRODUCTION.format(triton=table.triton, count=len(table.records)),
        _markdown(summary_rows(table.records)),
    ]
    for kernel in dict.fromkeys(record.kernel for record in table.records):
        variants: dict[tuple[str, int, int], dict[str, str]] = {}
        for record in table.records:
            if record.kernel == kernel:
                found = record.resources
                cell = [f"{found.registers} r", f"{_kib(found.shared)} K", found.mma, *record.remarks]
                variants.setdefault((record.name, record.warps, record.stages), {})[record.arch] = ", ".join(cell)
        rows = [["variant", "warps", "stages", *SHARED_LIMIT]]
        for (name, warps, stages), cells in variants.items():
            rows.append([name, str(warps), str(stages), *(cells.get(arch, "") for arch in SHARED_LIMIT)])
        parts.append(f"## {kernel}\n\n{_markdown(rows)}")
    return "\n\n".join(parts) + "\n"


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    head, *body = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([head, "|---" * len(rows[0]) + "|", *body])


def _kib(size: int) -> str:
    return f"{size / 1024:.1f}".removesuffix(".0")


_INTRODUCTION = """\
# What each Triton kernel takes of a GPU

Written by `python -m asyncthink_kernels.aot --update`, which compiles every kernel for every tile that
`asyncthink_kernels/tuning.py` can return ({count} binaries, Triton {triton}). No GPU took part: these are the
compilers' own figures, not measurements of speed. `python -m asyncthink_kernels.aot --check` fails if this page is not
what the code demands, or if any kernel spills registers or asks for more shared memory than a block may have.

In the cells: registers of a thread (gfx942: vector registers), KiB of shared memory of a block, kind of matrix
instruction (`mma` is `mma.sync`), codes of `ptxas` warnings (C7511: `wgmma` instructions that wait for each other), and
on gfx942 the number of scalar registers that wait in lanes of vector registers: an instruction each way and no memory,
so it is told and is no fault."""
