"""docs/kernels.md: a row for each Triton kernel and target, with the most that any of its variants takes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_resources import SHARED_LIMIT, Resources, faults

_HEADS = ("kernel", "target", "variants", "registers", "shared KiB", "of", "faulty", "matrix instructions", "key")
_DETAILS = ("variant", "target", "warps", "stages", "registers", "spills", "shared KiB", "mma", "16-byte loads", "")
_INTRODUCTION = """\
# What each Triton kernel takes of a GPU

`python tests/aot/kernel_report.py --update` writes this page. It compiles every kernel for every tile that
`asyncthink_kernels/tuning.py` can return ({count} binaries, Triton {triton}), without a GPU: the figures are the
compilers' own, not measurements of speed. `--check` fails if a kernel has changed since, spills registers, or needs
more shared memory than a block may have; without an option the command lists every variant.

A row holds the largest figures of its variants: registers of a thread (gfx942: vector registers), KiB of shared memory
of a block and how many there are, the number of variants that spill or need more than there is, the kinds of matrix
instructions (`mma` is `mma.sync`). The key changes with the source and all settings of the variants.
"""


@dataclass(frozen=True)
class Row:
    """The largest figures of all ``variants`` of ``kernel`` on ``arch``; ``key`` stands for all they follow from."""

    kernel: str
    arch: str
    variants: int
    registers: int
    shared: str
    faulty: int
    mma: str
    key: str

    @classmethod
    def of(cls, kernel: str, arch: str, found: Sequence[Resources], key: str) -> Row:
        kinds = sorted({kind for each in found for kind in each.mma.split("+")} - {"none"})
        return cls(
            kernel,
            arch,
            len(found),
            max(each.registers for each in found),
            kib(max(each.shared for each in found)),
            sum(bool(faults(each, arch)) for each in found),
            ", ".join(kinds) or "none",
            key,
        )

    @classmethod
    def parse(cls, line: str) -> Row:
        kernel, arch, variants, registers, shared, _, faulty, mma, key = line.strip("| ").split(" | ")
        return cls(kernel, arch, int(variants), int(registers), shared, int(faulty), mma, key)

    @property
    def cells(self) -> tuple[str, ...]:
        numbers = (str(self.variants), str(self.registers), self.shared, kib(SHARED_LIMIT[self.arch]))
        return self.kernel, self.arch, *numbers, str(self.faulty), self.mma, self.key

    @property
    def faults(self) -> list[str]:
        """Why the kernel must not ship for the target: nothing, or one line."""
        text = f"{self.kernel} on {self.arch}: {self.faulty} of {self.variants} variants spill or need too much memory"
        return [text] if self.faulty else []

    def exceeded_by(self, found: Resources) -> list[str]:
        """Where one of the variants takes more than the row says that any does."""
        text = []
        if found.registers > self.registers:
            text.append(f"{found.registers} registers, the page says at most {self.registers}")
        if float(kib(found.shared)) > float(self.shared):
            text.append(f"{kib(found.shared)} KiB of shared memory, the page says at most {self.shared}")
        unknown = set(found.mma.split("+")) - {"none", *self.mma.split(", ")}
        return text + [f"{kind} instructions, the page says {self.mma}" for kind in sorted(unknown)]


@dataclass(frozen=True)
class Page:
    """Rows, and the version of Triton that compiled them."""

    triton: str
    rows: Sequence[Row]

    @classmethod
    def read(cls, path: Path) -> Page:
        """Of an empty page where there is no file. Raises ValueError where the file is no such page."""
        if not path.exists():
            return cls("none", ())
        text = path.read_text(encoding="utf-8")
        version = re.search(r"binaries, Triton (\S+)\)", text)
        try:
            if version is None:
                raise ValueError("it names no version of Triton")
            return cls(version[1], tuple(map(Row.parse, re.findall(r"^\| (?!kernel ).*", text, re.MULTILINE))))
        except ValueError as error:
            raise ValueError(f"{path} is no page of kernels: {error}") from error

    def text(self) -> str:
        ordered = sorted(self.rows, key=lambda row: (row.kernel, list(SHARED_LIMIT).index(row.arch)))
        lines = ["| " + " | ".join(cells) + " |" for cells in (_HEADS, *(row.cells for row in ordered))]
        lines.insert(1, "|---" * len(_HEADS) + "|")
        count = sum(row.variants for row in ordered)
        return _INTRODUCTION.format(triton=self.triton, count=count) + "\n" + "\n".join(lines) + "\n"


def detail_cells(name: str, arch: str, variant: Any, found: Resources) -> tuple[str, ...]:
    """One variant's line in a list, under :data:`_DETAILS`."""
    remarks = [f"{found.lanes} in lanes"] if found.lanes else []
    numbers = (variant.num_warps, variant.num_stages, found.registers, found.spills)
    loads = f"{found.wide} of {found.wide + found.narrow}"
    return name, arch, *map(str, numbers), kib(found.shared), found.mma, loads, ", ".join([*remarks, *found.warnings])


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns of text below :data:`_DETAILS`."""
    every = [_DETAILS, *rows]
    widths = [max(map(len, column)) for column in zip(*every, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in every)


def kib(size: int) -> str:
    return f"{size / 1024:.1f}".removesuffix(".0")
