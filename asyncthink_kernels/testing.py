"""Inputs that catch mistakes, and a comparison that does not hide them. For tests and benches.

:class:`Tree` grows branches and makes plans on its own, in plain lists: what it hands to an op owes nothing to
:mod:`asyncthink_kernels.cache`. Memory that must not be read is poisoned: NaN in slots nobody sees, impossible page ids
where no item reaches.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

#: Page ids no cache has: read where they must not be, they end in an error or a crash, not in a plausible number.
IMPOSSIBLE = (-1, -(2**31), 2**31 - 1)


@dataclass(frozen=True)
class Tolerance:
    """Largest |actual - expected| / max(1, |expected|) of outputs and of LSEs, and largest 1 - cosine."""

    out: float
    lse: float
    cosine: float


#: Against the float64 reference on the same rounded inputs. Outputs round once to the dtype; bfloat16 kernels may also
#: round queries and softmax weights to it, for the chip's dot product.
TOLERANCE = {
    torch.float64: Tolerance(1e-12, 1e-12, 1e-14),
    torch.float32: Tolerance(4e-6, 2e-6, 4e-12),
    torch.float16: Tolerance(1e-3, 1e-4, 2e-7),
    torch.bfloat16: Tolerance(8e-3, 2e-3, 8e-6),
}


def compare(actual: Tensor, expected: Tensor, *, limit: float, cosine: float | None = None, what: str = "out") -> None:
    """AssertionError unless equal: first where values are not finite, then the largest error, then the direction.

    ``limit`` bounds |actual - expected| / max(1, |expected|); ``cosine`` bounds 1 - cos of the angle between the two.
    """
    assert actual.shape == expected.shape, f"{what}: shape {list(actual.shape)}, expected {list(expected.shape)}"
    a, b = actual.double().cpu().flatten(), expected.double().cpu().flatten()
    odd = ~(a.isfinite() & b.isfinite())
    agree = (a == b) | (a.isnan() & b.isnan())
    wrong = (odd & ~agree).nonzero()
    if wrong.numel():
        at = int(wrong[0])
        raise AssertionError(f"{what}: {a[at]} at {at}, expected {b[at]}; {len(wrong)} non-finite places differ")
    a, b = a[~odd], b[~odd]
    if a.numel() == 0:
        return
    error = (a - b).abs() / b.abs().clamp(min=1)
    at = int(error.argmax())
    assert error[at] <= limit, f"{what}: {a[at]} for {b[at]}, error {error[at]:.3g} > {limit:.3g}"
    if cosine is not None and a.norm() * b.norm() > 0:
        angle = 1 - (a @ b / (a.norm() * b.norm())).item()
        assert angle <= cosine, f"{what}: 1 - cosine {angle:.3g} > {cosine:.3g}"


@dataclass(eq=False)
class Node:
    """A run of slots written by one branch; its first token stands at ``position``."""

    position: int
    pages: list[int] = field(default_factory=list)
    length: int = 0


@dataclass
class Segment:
    """A branch sees tokens [start, stop) of ``node``, moved by ``shift`` positions."""

    node: Node
    start: int
    stop: int
    shift: int = 0


@dataclass(eq=False)
class Branch:
    """Segments in order; it may write on in the last one only if it opened that node itself."""

    segments: list[Segment] = field(default_factory=list)
    owns_last: bool = False

    @property
    def length(self) -> int:
        return sum(segment.stop - segment.start for segment in self.segments)


#: What a row sees of one token: (slot, position in the row's branch, shift).
Seen = tuple[int, int, int]


@dataclass
class Plan:
    """Arguments of tree_attention that describe a step, and, for each row, what it sees written out token by token."""

    args: dict[str, Tensor]
    seen: list[list[Seen]]


class Tree:
    """A maker of branches and plans. Pages are handed out in shuffled order; nothing is ever released."""

    def __init__(self, *, page_size: int = 16, num_pages: int = 64, seed: int = 0) -> None:
        self.page_size = page_size
        self.num_pages = num_pages
        self.random = random.Random(seed)
        self._free = self.random.sample(range(num_pages), num_pages)

    def root(self, tokens: int = 0) -> Branch:
        branch = Branch()
        self.grow(branch, tokens)
        return branch

    def grow(self, branch: Branch, tokens: int) -> None:
        """Append new tokens, in a node of the branch's own."""
        if not branch.owns_last:
            branch.segments.append(Segment(Node(position=branch.length), 0, 0))
            branch.owns_last = True
        segment = branch.segments[-1]
        segment.stop += tokens
        segment.node.length += tokens
        while len(segment.node.pages) * self.page_size < segment.node.length:
            segment.node.pages.append(self._free.pop())

    def fork(self, branch: Branch, at: int | None = None, tokens: int = 0) -> Branch:
        """A branch that sees the first ``at`` tokens of another, plus ``tokens`` of its own."""
        child = Branch(self._span(branch, 0, branch.length if at is None else at))
        self.grow(child, tokens)
        return child

    def link(self, dst: Branch, src: Branch, start: int, stop: int) -> None:
        """Append tokens [start, stop) of ``src``'s context to ``dst`` without a copy, moved to their new positions."""
        move = dst.length - start
        dst.segments += [replace(each, shift=each.shift + move) for each in self._span(src, start, stop)]
        dst.owns_last = False

    def slot(self, node: Node, token: int) -> int:
        return node.pages[token // self.page_size] * self.page_size + token % self.page_size

    def plan(self, work: Sequence[tuple[Branch, int]], *, chunk: int = 512, all_rows_see: bool = True) -> Plan:
        """A step whose rows are the last n tokens of each branch; ``all_rows_see=False`` blinds every third row."""
        shifts: list[int] = [0]
        found: dict[tuple[Node, int], list[list[int]]] = {}
        row_ptr, positions = [0], list[int]()
        seen: list[list[Seen]] = []
        for branch, new in work:
            for length in range(branch.length - new + 1, branch.length + 1):
                row, partial = len(positions), row_ptr[-1]
                blind = not all_rows_see and row % 3 == 1
                segments = [] if blind else self._span(branch, 0, length)
                for segment in segments:
                    if segment.shift not in shifts:
                        shifts.append(segment.shift)
                    for part in range(segment.start // chunk, -(-segment.stop // chunk)):
                        begin = max(segment.start - part * chunk, 0)
                        end = min(segment.stop - part * chunk, chunk)
                        entry = [row, begin, end, shifts.index(segment.shift), partial]
                        found.setdefault((segment.node, part), []).append(entry)
                        partial += 1
                row_ptr.append(partial)
                positions.append(length - 1)
                seen.append([self._seen(each, token) for each in segments for token in range(each.start, each.stop)])
        items, pages, entries = self._items(found, chunk)
        args = {
            "items": _int32(items).reshape(-1, 6),
            "pages": _int32(pages),
            "entries": _int32(entries).reshape(-1, 5),
            "row_ptr": _int32(row_ptr),
            "positions": _int32(positions),
            "shifts": _int32(shifts),
        }
        return Plan(args, seen)

    def _items(
        self, found: dict[tuple[Node, int], list[list[int]]], chunk: int
    ) -> tuple[list[list[int]], list[int], list[list[int]]]:
        items: list[list[int]] = []
        pages: list[int] = []
        entries: list[list[int]] = []
        for (node, part), mine in found.items():
            first = part * chunk
            length = min(node.length - first, chunk)
            offset = first % self.page_size
            used = node.pages[first // self.page_size : -(-(first + length) // self.page_size)]
            room = -(-(offset + chunk) // self.page_size)
            items.append([len(pages), offset, length, node.position + first, len(entries), len(entries) + len(mine)])
            pages += used + [self.random.choice(IMPOSSIBLE) for _ in range(room - len(used))]
            entries += mine
        return items, pages, entries

    def _seen(self, segment: Segment, token: int) -> Seen:
        return self.slot(segment.node, token), segment.node.position + token + segment.shift, segment.shift

    @staticmethod
    def _span(branch: Branch, start: int, stop: int) -> list[Segment]:
        result, begin = [], 0
        for each in branch.segments:
            low = max(start - begin, 0)
            high = min(stop - begin, each.stop - each.start)
            if low < high:
                result.append(replace(each, start=each.start + low, stop=each.start + high))
            begin += each.stop - each.start
        return result


def random_tree(seed: int, *, page_size: int = 16, forests: int = 2, moves: int = 12) -> tuple[Tree, list[Branch]]:
    """A tree grown by random forks, growth and links, and all its branches."""
    tree = Tree(page_size=page_size, num_pages=40 + 4000 // page_size, seed=seed)
    rng = tree.random
    branches = [tree.root(rng.randrange(1, 90)) for _ in range(forests)]
    for _ in range(moves):
        branch = rng.choice(branches)
        move = rng.random()
        if move < 0.4:
            branches.append(tree.fork(branch, rng.randrange(1, branch.length + 1), rng.randrange(1, 40)))
        elif move < 0.6:
            source = rng.choice(branches)
            start = rng.randrange(source.length)
            tree.link(branch, source, start, rng.randrange(start, min(source.length, start + 30)) + 1)
        tree.grow(branch, rng.randrange(1, 30))
    return tree, branches


def poisoned(shape: Sequence[int], slots: Sequence[int], dtype: torch.dtype, seed: int, *, strided: bool) -> Tensor:
    """A cache [P, S, H, D] of normal numbers in ``slots`` and NaN elsewhere; ``strided``: a view with gaps of NaN."""
    P, S, H, D = shape
    room = torch.full((P, S, H + 1, D + 8) if strided else (P, S, H, D), math.nan, dtype=dtype)
    cache = room[:, :, :H, :D]
    index = torch.tensor(sorted(set(slots)), dtype=torch.long)
    cache[index // S, index % S] = normal((len(index), H, D), dtype, seed)
    return cache


def normal(shape: Sequence[int], dtype: torch.dtype, seed: int) -> Tensor:
    """Normal numbers, rounded from float32 to ``dtype``."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def far_apart(shape: Sequence[int], dtype: torch.dtype, axis: int, device: str) -> Tensor:
    """Uninitialised, dense but for ``axis``, whose steps are 2 ** 30 elements: from index 2 on, offsets in it pass what
    32 bits can count. Memory between the steps is never touched, so a CPU does not provide it."""
    strides = list(torch.empty(*shape, device="meta").stride())
    strides[axis] = 2**30
    room = torch.empty((shape[axis] - 1) * 2**30 + math.prod(shape), dtype=dtype, device=device)
    return room.as_strided(tuple(shape), strides)


def odd_bits(tensor: Tensor) -> None:
    """Fill ``tensor`` with what arithmetic would not keep: NaNs of several payloads, signalling and quiet, and -0."""
    odd = {
        torch.float32: (0x7F800001, 0x7FC12345, -0x003FFFFF, -0x80000000),
        torch.bfloat16: (0x7F81, 0x7FC3, -0x003F, -0x8000),
        torch.float16: (0x7C01, 0x7E03, -0x01FF, -0x8000),
    }[tensor.dtype]
    bits = tensor.view(torch.int32 if tensor.dtype == torch.float32 else torch.int16)
    repeats = -(-bits.numel() // len(odd))
    bits.copy_(torch.tensor(odd, dtype=bits.dtype).repeat(repeats)[: bits.numel()].view(bits.shape))


def angles(shifts: Tensor, pairs: int, base: float = 10000.0) -> tuple[Tensor, Tensor]:
    """cos and sin [K, R] float32 of ``shifts[k] * base ** (-i / R)``: the default rotary embedding on R pairs."""
    inverse = base ** -(torch.arange(pairs, dtype=torch.float64) / max(pairs, 1))
    angle = shifts.double()[:, None] * inverse
    return angle.cos().float(), angle.sin().float()


def widened(arguments: dict[str, Any]) -> dict[str, Any]:
    """The same arguments with every floating-point tensor in float64, for the reference."""
    return {name: value.double() if _floats(value) else value for name, value in arguments.items()}


def moved(arguments: dict[str, Any], device: str) -> dict[str, Any]:
    """The same arguments on ``device``; tensors that are there already stay the same tensors, strides and all."""
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in arguments.items()}


def _int32(values: Sequence[Any]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def _floats(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()
