"""The tokens of threads as a tree, and which of them are computed. No step runs here.

A thread writes a *stretch*. A fork begins a new stretch behind some token of another one and copies nothing. A stretch
lives as long as something uses it: its thread, a stretch that begins behind one of its tokens, or a join that read its
K/V, which may have to be computed again.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from asyncthink.model.contract import ContextBranch

#: The tokens that a thread sees of its own stretch: all of them.
WHOLE = sys.maxsize


@dataclass(frozen=True, eq=False, slots=True)
class Joined:
    """Tokens [at, at + count) of a context, whose K/V are those of tokens [first, first + count) of ``source``'s."""

    at: int
    count: int
    source: Stretch
    first: int
    mode: str

    @property
    def stop(self) -> int:
        return self.first + self.count


class Claim(Protocol):
    """The right to compute more of a stretch."""

    @property
    def finished(self) -> bool:
        """Whether all is computed that the claim was for."""
        ...


class Stretch:
    """Tokens behind the first ``start`` ones of ``parent``'s context.

    Attributes:
        tokens, logprobs: of its own part; the log-probability of a token that was not drawn is None.
        joins: which of them were joined by K/V, ascending.
        branch: K/V of the first ``branch.length`` tokens of the context; None if none are kept.
        reader: what computes more of them at present, until it has finished.
        needed: how many running jobs need the K/V.
        users: who uses the stretch, and how many tokens of its context.
    """

    def __init__(self, parent: Stretch | None = None, start: int = 0) -> None:
        self.parent, self.start = parent, start
        self.tokens: list[int] = []
        self.logprobs: list[float | None] = []
        self.joins: list[Joined] = []
        self.branch: ContextBranch | None = None
        self.reader: Claim | None = None
        self.needed = 0
        self.users: dict[object, int] = {}
        if parent is not None:
            parent.users[self] = start

    @property
    def length(self) -> int:
        """Tokens of the context."""
        return self.start + len(self.tokens)

    @property
    def computed(self) -> int:
        """Tokens of the context whose K/V are kept."""
        return 0 if self.branch is None else self.branch.length

    def behind(self, length: int) -> Stretch:
        """The stretch that holds token ``length - 1`` of the context: a fork at ``length`` begins behind it."""
        stretch = self
        while stretch.parent is not None and length <= stretch.start:
            stretch = stretch.parent
        return stretch

    def context(self, start: int = 0, stop: int | None = None) -> list[int]:
        """Tokens [start, stop) of the context."""
        return [token for part, begin, end in self._parts(start, stop) for token in part.tokens[begin:end]]

    def context_logprobs(self, start: int = 0, stop: int | None = None) -> list[float | None]:
        """Log-probabilities of tokens [start, stop) of the context."""
        return [value for part, begin, end in self._parts(start, stop) for value in part.logprobs[begin:end]]

    def add(self, tokens: list[int], logprobs: list[float | None] | None = None) -> None:
        """Append tokens."""
        self.tokens += tokens
        self.logprobs += [None] * len(tokens) if logprobs is None else logprobs

    def join(self, source: Stretch, first: int, count: int, mode: str) -> None:
        """Append tokens [first, first + count) of ``source``'s context, by K/V."""
        joined = Joined(self.length, count, source, first, mode)
        source.users[joined] = joined.stop
        self.joins.append(joined)
        self.add(source.context(first, joined.stop))

    def shifts(self, start: int, stop: int) -> set[int]:
        """By how many positions the K/V of tokens [start, stop) are moved where they are read."""
        shifts: set[int] = set()
        for part, begin, end in self._parts(start, stop):
            at, last = part.start + begin, part.start + end
            for joined in part.joins:
                first, behind = max(joined.at, at), min(joined.at + joined.count, last)
                if joined.mode == "link" and first < behind:
                    move = joined.at - joined.first
                    shifts |= {move + shift for shift in joined.source.shifts(first - move, behind - move)}
                    if first > at:
                        shifts.add(0)
                    at = behind
            if at < last:
                shifts.add(0)
        return shifts

    def _parts(self, start: int, stop: int | None) -> list[tuple[Stretch, int, int]]:
        """(stretch, begin, end): the own tokens of each that make up tokens [start, stop) of the context, in order."""
        stop = self.length if stop is None else stop
        parts: list[tuple[Stretch, int, int]] = []
        stretch: Stretch | None = self
        while stretch is not None and start < stop:
            if stop > stretch.start:
                parts.append((stretch, max(start - stretch.start, 0), stop - stretch.start))
                stop = stretch.start
            stretch = stretch.parent
        return parts[::-1]


def needed(target: Stretch, stop: int, begin: int) -> dict[Stretch, int]:
    """The stretches whose K/V the first ``stop`` tokens of ``target``'s context need, and how many tokens of each.

    ``begin`` is where the branch of ``target`` begins if it has none. K/V that are computed are among them, what only
    these needed is not.
    """
    stops = {target: stop}
    todo = [target]
    while todo:
        stretch = todo.pop()
        computed, stop = stretch.computed, stops[stretch]
        if computed >= stop:
            continue
        wanted = [(j.source, j.stop) for j in stretch.joins if computed <= j.at < stop]
        if stretch.branch is None and stretch.parent is not None:
            first = begin if stretch is target else stretch.start
            wanted.append((stretch.behind(first), first))
        for source, length in wanted:
            if length > 0 and stops.get(source, 0) < length:
                stops[source] = length
                todo.append(source)
    return stops
