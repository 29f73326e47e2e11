"""The branches of a cache that were made and not released."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from .branch import NO_NODE, Branch, Segment
from .node import NodeTable
from .pages import IntArray


class Branches:
    """Makes branches, lets them go, and says whether one is live."""

    def __init__(self, nodes: NodeTable) -> None:
        self._nodes = nodes
        self._live: dict[int, Branch] = {}
        self._next_id = 0

    def __iter__(self) -> Iterator[Branch]:
        return iter(self._live.values())

    def add(self, fixed: tuple[Segment, ...]) -> Branch:
        """A new branch that sees these segments."""
        branch = Branch(self._nodes, self._next_id, fixed)
        for segment in fixed:
            self._nodes.retain(segment.node, segment.start, segment.stop)
        self._live[branch.id] = branch
        self._next_id += 1
        return branch

    def remove(self, branch: Branch) -> None:
        """Let a live branch go, and what only it saw."""
        del self._live[branch.id]
        if branch.tail != NO_NODE:
            self._nodes.disown(branch.tail)
        for segment in branch.fixed:
            self._nodes.drop(segment.node, segment.start, segment.stop)
        branch.set_fixed(())
        branch.tail = NO_NODE

    def require(self, name: str, branch: Branch) -> None:
        """ValueError unless this is a live branch of the cache; ``name`` is the argument's."""
        if not isinstance(branch, Branch) or not branch.of(self._nodes):
            raise ValueError(f"{name}: expected a branch of this cache, got {branch!r}")
        if branch.id not in self._live:
            raise ValueError(f"{name}: branch {branch.id} was released")

    def check_work(self, work: Sequence[tuple[Branch, int]]) -> tuple[list[Branch], IntArray]:
        """The branches of a step and how many tokens each gets; ValueError as in :meth:`.tree.TreeCache.plan`."""
        if not work:
            raise ValueError("work: expected at least one (branch, tokens) pair, got none")
        known = self._live
        for branch, count in work:  # in every step for every agent: what is wrong is only looked for where something is
            if isinstance(branch, Branch) and known.get(branch.id) is branch and type(count) is int and count >= 1:
                continue
            self.require("work", branch)
            raise ValueError(f"work: expected an integer >= 1 of tokens for branch {branch.id}, got {count!r}")
        branches = [branch for branch, _ in work]
        if len({b.id for b in branches}) != len(branches):
            raise ValueError(f"work: expected each branch once, got ids {sorted(b.id for b in branches)}")
        return branches, np.array([count for _, count in work], dtype=np.int64)
