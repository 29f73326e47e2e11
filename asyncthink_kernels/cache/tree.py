"""The cache: forks, joins, truncates, releases and plans branches. Pure bookkeeping: no K or V is touched here.

Letters: N tokens of a span.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch

from .branch import NO_NODE, Branch, Segment, cut
from .branches import Branches
from .check import check_nodes
from .growth import grow, link, tail_lengths
from .node import NodeTable
from .pages import IntArray, PagePool, require_at_least
from .plan import StepPlan
from .planner import LivePlan, Tails
from .stateless import Stateless
from .stats import CacheStats
from .usage import pages_freed, pages_seen

JOIN_MODES = ("append", "link")


class Scatter(NamedTuple):
    """What an `append` join has to copy: K of src_slots, rotated by `shift` positions, and V, to dst_slots."""

    src_slots: torch.Tensor  # [N] int64
    dst_slots: torch.Tensor  # [N] int64
    shift: int


class TreeCache(Stateless):
    """A paged cache whose branches share what they have in common.

    `chunk` tokens of a node make one attention item; it must be a multiple of `page_size`, and it alone decides where
    the sums of attention are cut, so a branch's result does not depend on its siblings. Every method either does
    what it says or raises with nothing changed. Not thread-safe.

        >>> cache = TreeCache(num_pages=8, page_size=4, chunk=8)
        >>> organizer = cache.root()
        >>> cache.plan([(organizer, 6)]).slots.tolist()
        [0, 1, 2, 3, 4, 5]
        >>> worker = cache.fork(organizer)              # mid-page, nothing copied
        >>> plan = cache.plan([(organizer, 1), (worker, 1)])
        >>> plan.slots.tolist(), plan.positions.tolist()
        ([6, 8], [6, 6])
        >>> plan.entries.tolist()                       # row, begin, end, shift_index, partial
        [[0, 0, 7, 0, 0], [1, 0, 6, 0, 1], [1, 0, 1, 0, 2]]
        >>> cache.release(organizer), cache.release(worker), cache.used_pages
        (None, None, 0)

    Raises ValueError where a size is not positive or `chunk` is no multiple of `page_size`.
    """

    def __init__(self, num_pages: int, page_size: int = 16, chunk: int = 512) -> None:
        self._pool = PagePool(num_pages, page_size)
        if require_at_least("chunk", chunk, 1) % page_size:
            raise ValueError(f"chunk: expected a multiple of page_size {page_size}, got {chunk}")
        self._nodes = NodeTable(self._pool, chunk)
        self._branches = Branches(self._nodes)
        self._live: LivePlan | None = None
        self._live_work: list[tuple[Branch, int]] = []
        self.stats = CacheStats()

    @property
    def num_pages(self) -> int:
        return self._pool.num_pages

    @property
    def page_size(self) -> int:
        return self._pool.page_size

    @property
    def chunk(self) -> int:
        return self._nodes.chunk

    @property
    def free_pages(self) -> int:
        return self._pool.free

    @property
    def used_pages(self) -> int:
        return self._pool.used

    @property
    def branches(self) -> tuple[Branch, ...]:
        """All branches that were made and not released."""
        return tuple(self._branches)

    def root(self) -> Branch:
        """A new empty branch."""
        return self._add(())

    def fork(self, branch: Branch, at: int | None = None) -> Branch:
        """A branch that sees the first `at` tokens of `branch` (all of them by default), zero copy.

        O(number of segments), whatever `at` is: mid-page, inside an ancestor's part, inside a linked span. `branch`
        goes on writing its own node behind what the child sees. ValueError where `at` is not in [0, branch.length].
        """
        self._branches.require("branch", branch)
        length = branch.length
        at = length if at is None else require_at_least("at", at, 0)
        if at > length:
            raise ValueError(f"at: expected at most the branch's length {length}, got {at}")
        child = self._add(cut(branch.segments, 0, at))
        self.stats.forks += 1
        self.stats.tokens_shared += at
        return child

    def truncate(self, branch: Branch, length: int) -> None:
        """Cut `branch` back to `length` tokens, giving back the pages of the tail: undoes a failed step.

        Only tokens the branch wrote since its start or its last `link` join, and that no other branch sees, can go;
        else ValueError.
        """
        self._branches.require("branch", branch)
        require_at_least("length", length, 0)
        if length == branch.length:
            return
        if not branch.base <= length < branch.length:
            raise ValueError(
                f"length: expected {branch.base} (where the branch's own tail begins) to {branch.length}, got {length}"
            )
        kept = length - branch.base
        seen = self._nodes.seen_beyond(branch.tail, kept)
        if seen:
            raise ValueError(f"length: another branch sees the first {branch.base + seen} tokens, got {length}")
        self._nodes.shrink(branch.tail, kept)
        if kept == 0:
            branch.tail = NO_NODE
        self._live = None

    def release(self, branch: Branch) -> None:
        """Let go of a branch. Pages go back once no remaining branch sees them; ValueError on a second release."""
        self._branches.require("branch", branch)
        self._branches.remove(branch)
        self._live = None

    def join(self, dst: Branch, src: Branch, start: int, stop: int, mode: Literal["append", "link"]) -> Scatter | None:
        """Let `dst` go on with tokens [start, stop) of `src`'s context.

        `append` reserves N = stop - start slots at dst's end and returns what to copy there. `link` makes dst see
        src's slots, zero copy, at positions shifted by dst.length - start; dst then goes on in a node of its own.
        An `exact` join needs no call here: the tokens are ordinary rows of the next plan.

        Raises ValueError on an empty or outlying span, an unknown mode, or an `append` of a span whose parts are
        linked at different shifts (one rotation cannot serve it); OutOfPages where `append` finds no room.
        """
        self._branches.require("dst", dst)
        self._branches.require("src", src)
        if mode not in JOIN_MODES:
            raise ValueError(f"mode: expected one of {JOIN_MODES}, got {mode!r}")
        require_at_least("start", start, 0)
        if require_at_least("stop", stop, start + 1) > src.length:
            raise ValueError(f"stop: expected at most src's length {src.length}, got {stop}")
        shift = dst.length - start
        span = [s._replace(shift=s.shift + shift) for s in cut(src.segments, start, stop)]
        if mode == "append":
            return self._append(dst, span, stop - start)
        link(self._nodes, dst, span)
        self._live = None
        self.stats.tokens_shared += stop - start
        return None

    def _append(self, dst: Branch, span: Sequence[Segment], count: int) -> Scatter:
        shifts = sorted({s.shift for s in span})
        if len(shifts) > 1:
            raise ValueError(f"span: expected one position shift for an append join, got {shifts} (src has links)")
        src_slots = np.concatenate([self._nodes.slots(s.node, s.start, s.stop) for s in span])
        before = dst.tail_length
        self._grow([dst], np.array([count]))
        dst_slots = self._nodes.slots(dst.tail, before, before + count)
        self.stats.tokens_copied += count
        self._live = None
        return Scatter(torch.from_numpy(src_slots), torch.from_numpy(dst_slots), shifts[0])

    def check_copy(self, dst: Branch, src: Branch, start: int, stop: int) -> None:
        """ValueError unless an append of `src`'s tokens [start, stop) to `dst` copies whole pages to whole pages.

        That is: `dst` has `start` tokens and wrote none of them, and `src` has the span in one node, unshifted, where
        `start` begins a page.
        """
        self._branches.require("dst", dst)
        self._branches.require("src", src)
        if dst.length != start or dst.tail != NO_NODE:
            raise ValueError(f"dst: expected a fork of {start} tokens that wrote none, got {dst}")
        span = cut(src.segments, start, stop)
        if len(span) != 1 or span[0].shift or span[0].start % self.page_size:
            raise ValueError(f"span: expected [{start}, {stop}) in one node from the start of a page, got {span}")

    def fits(self, work: Sequence[tuple[Branch, int]]) -> bool:
        """Whether `plan(work)` finds what it needs now. ValueError as in `plan`, if it has to look closely."""
        if not self.states_fit(work):
            return False
        # A branch needs at most the pages that its new tokens fill by themselves. Usually this bound suffices.
        if sum(-(-count // self.page_size) for _, count in work) <= self.free_pages:
            return True
        return self.pages_needed(work) <= self.free_pages

    def pages_needed(self, work: Sequence[tuple[Branch, int]]) -> int:
        """How many free pages `plan(work)` takes. ValueError as in `plan`."""
        branches, counts = self._branches.check_work(list(work))
        return int(self._nodes.pages_for(tail_lengths(self._nodes, branches), counts).sum())

    def plan(self, work: Sequence[tuple[Branch, int]]) -> StepPlan:
        """Reserve n slots at the end of each (branch, n) of `work` and plan the step that fills them.

        Rows come in the order of `work`, a branch's n rows consecutive. Where the same branches each advance by one
        token again and no topology changed, the previous plan is updated in place: a few numpy increments.

        Raises ValueError on empty work, n < 1, or a branch that is named twice, released or of another cache;
        OutOfPages where the pool cannot hold the step. In both cases nothing has changed.
        """
        work = list(work)
        if self._live is not None and work == self._live_work and self._live.advance():
            self.stats.plans_advanced += 1
            self._note_peak()
            return self._live.plan
        branches, counts = self._branches.check_work(work)
        live = LivePlan(self._nodes, [b.fixed_array() for b in branches], self._grow(branches, counts))
        self._live = live if counts.max() == 1 else None
        self._live_work = work
        self.stats.plans_built += 1
        return live.plan

    def _grow(self, branches: Sequence[Branch], counts: IntArray) -> Tails:
        tails = grow(self._nodes, branches, counts)
        self._note_peak()
        return tails

    def slots(self, branch: Branch, start: int = 0, stop: int | None = None) -> torch.Tensor:
        """Slots of tokens [start, stop) of the branch's context, [stop - start] int64."""
        self._branches.require("branch", branch)
        stop = branch.length if stop is None else stop
        if not 0 <= start <= stop <= branch.length:
            raise ValueError(f"span: expected 0 <= start <= stop <= {branch.length}, got [{start}, {stop})")
        parts = [self._nodes.slots(s.node, s.start, s.stop) for s in cut(branch.segments, start, stop)]
        return torch.from_numpy(np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64))

    def pages_seen(self, branches: Sequence[Branch]) -> int:
        """How many pages at least one of `branches` sees. ValueError for a branch that is not live."""
        for branch in branches:
            self._branches.require("branches", branch)
        return pages_seen(self._nodes, branches)

    def pages_freed(self, branches: Sequence[Branch]) -> int:
        """How many pages releasing all of `branches` would free. ValueError for a branch that is not live."""
        for branch in branches:
            self._branches.require("branches", branch)
        return pages_freed(self._nodes, branches)

    def check(self) -> None:
        """Verify every invariant of the bookkeeping; RuntimeError naming the first that is broken. For tests."""
        check_nodes(self._nodes, self.branches)

    def _add(self, fixed: tuple[Segment, ...]) -> Branch:
        return self._branches.add(fixed)

    def _note_peak(self) -> None:
        self.stats.peak_pages = max(self.stats.peak_pages, self._pool.used)
