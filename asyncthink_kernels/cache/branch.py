"""What one agent sees: segments of nodes, in context order."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from .node import NodeTable
from .pages import IntArray

NO_NODE = -1


class Segment(NamedTuple):
    """Tokens [start, stop) of a node; token i stands at position node.position + i + shift in the branch."""

    node: int
    start: int
    stop: int
    shift: int


def cut(segments: Iterable[Segment], start: int, stop: int) -> tuple[Segment, ...]:
    """The parts of `segments` that hold tokens [start, stop) of the context they make up."""
    parts, at = [], 0
    for s in segments:
        end = at + s.stop - s.start
        if end > start and at < stop:
            parts.append(s._replace(start=s.start + max(start - at, 0), stop=s.stop - max(end - stop, 0)))
        at = end
    return tuple(parts)


class Branch:
    """One agent's view: segments that no longer change, then the tail node it alone writes. Made by a TreeCache."""

    __slots__ = ("_array", "_nodes", "base", "fixed", "id", "tail")

    def __init__(self, nodes: NodeTable, branch_id: int, fixed: tuple[Segment, ...]) -> None:
        self.id = branch_id
        self.tail = NO_NODE  # node id; the tail stands at position `base` and has no shift
        self._nodes = nodes
        self.set_fixed(fixed)

    def set_fixed(self, fixed: tuple[Segment, ...]) -> None:
        """For the cache alone: replace the segments before the tail."""
        self.fixed = fixed
        self.base = sum(s.stop - s.start for s in fixed)
        self._array: IntArray | None = None

    def of(self, nodes: NodeTable) -> bool:
        """Whether the branch lives in these nodes."""
        return self._nodes is nodes

    @property
    def tail_length(self) -> int:
        """Tokens of the branch's own tail node."""
        return 0 if self.tail == NO_NODE else int(self._nodes.length[self.tail])

    @property
    def length(self) -> int:
        """Tokens in the branch's context; the next token's position."""
        return self.base + self.tail_length

    @property
    def segments(self) -> tuple[Segment, ...]:
        """What the branch sees, in context order."""
        if self.tail == NO_NODE:
            return self.fixed
        return (*self.fixed, Segment(self.tail, 0, self.tail_length, 0))

    def fixed_array(self) -> IntArray:
        """The fixed segments as [*, 4] int64, made once."""
        if self._array is None:
            self._array = np.array(self.fixed, dtype=np.int64).reshape(-1, 4)
        return self._array

    def __repr__(self) -> str:
        return f"Branch(id={self.id}, length={self.length})"
