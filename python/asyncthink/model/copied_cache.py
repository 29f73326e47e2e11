"""Branches that have a cache object each: a fork copies one, when the branch or its parent goes on.

Bookkeeping alone: how a cache is copied and cut is the business of :class:`.own_cache.OwnCalls`.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from typing import Any

from asyncthink.model.copied_branch import CopiedBranch, CopiedPlan, Held
from asyncthink.model.copied_pages import CopiedPages
from asyncthink_kernels.cache import OutOfPages


class CopiedCache(CopiedPages):
    """Branches within ``num_pages`` pages of ``page_size`` tokens; each cache object takes ``state_pages`` more.

    A fork is free until the parent or the child goes on: the first to do so copies the cache, the last one goes on in
    place. A branch that is to see fewer tokens than its cache holds crops the copy, if the cache can be cropped. Else
    the tokens are computed again, behind the longest cache at hand that holds the first of them. Snapshots are caches
    that are kept for this; they give way, the oldest first, where a step needs their pages.

    >>> from types import SimpleNamespace
    >>> cache = CopiedCache(SimpleNamespace(version=lambda: 0), num_pages=4, page_size=8)
    >>> organizer = cache.root()
    >>> cache.plan([(organizer, 9)]).rows, cache.used_pages
    (9, 2)

    Raises:
        ValueError: a size that is not positive.
    """

    chunk = 1
    free_states = sys.maxsize

    def root(self) -> CopiedBranch:
        """A new empty branch."""
        branch = CopiedBranch(self._next_id)
        self._branches[branch.id] = branch
        self._next_id += 1
        return branch

    def fork(self, branch: CopiedBranch, at: int | None = None) -> CopiedBranch:
        """A branch that sees the first ``at`` tokens of ``branch`` (all of them by default).

        ValueError where ``at`` is not in [0, tokens that are computed].
        """
        self._require_live("branch", branch)
        known = branch.length - branch.planned
        at = known if at is None else at
        if isinstance(at, bool) or not isinstance(at, int) or not 0 <= at <= known:
            raise ValueError(f"at: expected an integer from 0 to {known}, got {at!r}")
        child = self.root()
        if branch.held is not None:
            self._look(child, branch.held, branch.seen)
        child.again = list(branch.again)
        self._cut(child, at)
        self.stats.forks += 1
        return child

    def truncate(self, branch: CopiedBranch, length: int) -> None:
        """Cut ``branch`` back to ``length`` tokens; other branches see what they saw. ValueError beyond its length."""
        self._require_live("branch", branch)
        if isinstance(length, bool) or not isinstance(length, int) or not 0 <= length <= branch.length:
            raise ValueError(f"length: expected an integer from 0 to {branch.length}, got {length!r}")
        if length < branch.length:
            self._plan(branch, 0)
            self._cut(branch, min(length, branch.length))

    def release(self, branch: CopiedBranch) -> None:
        """Let go of a branch. Its cache goes with the last branch that looks at it; ValueError on a second release."""
        self._require_live("branch", branch)
        self._plan(branch, 0)
        self._leave(branch)
        branch.again = []
        del self._branches[branch.id]

    def pages_needed(self, work: Sequence[tuple[CopiedBranch, int]]) -> int:
        """How many free pages ``plan(work)`` takes. ValueError as in :meth:`plan`."""
        self._check_work(work)
        return self._pages_for(work, kept=False)

    def fits(self, work: Sequence[tuple[CopiedBranch, int]]) -> bool:
        """Whether ``plan(work)`` finds what it needs now."""
        return not work or self.pages_needed(work) <= self.free_pages

    def states_fit(self, work: Sequence[tuple[CopiedBranch, int]]) -> bool:
        """Always: the states of caches are counted in pages."""
        return True

    def plan(self, work: Sequence[tuple[CopiedBranch, int]]) -> CopiedPlan:
        """Reserve n tokens at the end of each (branch, n) of ``work``, each in a cache object that it alone sees.

        Raises ValueError on empty work, n < 1, or a branch that is named twice, released, or still planned;
        OutOfPages where there is no room. Nothing has changed then.
        """
        needed = self.pages_needed(work)
        if needed > self.free_pages:
            raise OutOfPages(needed, self.free_pages)
        while self._kept and self._pages_held() + self._pages_for(work, kept=True) > self.num_pages:
            self._kept.popitem(last=False)[1].kept = False
        copied = []
        for place, (branch, count) in enumerate(work):
            if (tokens := self._own(branch)) is not None:
                copied.append((place, tokens))
            self._plan(branch, count)
        return CopiedPlan(tuple(work), tuple(copied))

    # -- forks at an earlier token ------------------------------------------------------------------------------

    def forkable(self, branch: CopiedBranch, at: int) -> int:
        """The most of the first ``at`` tokens of ``branch`` that a fork can begin with, so that none is computed again.

        >>> cache = CopiedCache(None, num_pages=4)
        >>> cache.forkable(cache.root(), 0)
        0
        """
        self._require_live("branch", branch)
        if branch.held is None or self._caches.croppable(branch.held.cache):
            return at
        if branch.seen <= at:
            return branch.seen
        nearest = self._nearest(branch.held.tokens[:at])
        return 0 if nearest is None else len(nearest.tokens)

    def snapshot(self, branch: CopiedBranch) -> None:
        """Keep the cache of ``branch`` as it is now for later forks, if it cannot be cut, until its room is needed."""
        self._require_live("branch", branch)
        held = branch.held
        if held is not None and not held.planned and held.tokens and not self._caches.croppable(held.cache):
            held.kept = True
            self._kept[id(held)] = held

    def park(self, branch: CopiedBranch) -> None:
        """The branch rests. Nothing changes."""

    def restore(self, branch: CopiedBranch) -> bool:
        """Whether the branch can go on: always, as what it lacks is computed again."""
        return True

    def room_before_mark(self, branch: CopiedBranch, count: int, marks: Collection[int] = ()) -> int:
        """How many of the next ``count`` tokens a step may take, so that a cache that cannot be cut ends at a mark."""
        ahead = [mark - branch.length for mark in marks if mark > branch.length]
        return count if not ahead or not self._marked(branch) else min(count, *ahead)

    def at_mark(self, branch: CopiedBranch, marks: Collection[int] = ()) -> bool:
        """Whether a snapshot is wanted where the branch ends."""
        return branch.length in marks and self._marked(branch)

    def check_copy(self, dst: CopiedBranch, src: CopiedBranch, start: int, stop: int) -> None:
        """ValueError: no part of a context is copied on its own."""
        raise ValueError("span: expected a fork, as each branch has a whole cache of its own")

    def entered(self, branch: CopiedBranch, cache: Any, tokens: Sequence[int]) -> None:
        """``cache`` holds the branch's tokens, those that were computed again, and the new ``tokens``."""
        held = branch.held
        assert held is not None
        held.cache = cache
        held.tokens += [*branch.again, *tokens]
        self.stats.tokens_again += len(branch.again)
        branch.again, branch.seen = [], len(held.tokens)
        self._plan(branch, 0)

    def lost(self, plan: CopiedPlan, failed: CopiedBranch) -> None:
        """A step has failed: no planned tokens entered, and the cache of ``failed``, which it alone saw, is broken."""
        for branch, _ in plan.work:
            self._plan(branch, 0)
        failed.again = failed.tokens
        self._leave(failed)

    # -- helpers ------------------------------------------------------------------------------------------------

    def _marked(self, branch: CopiedBranch) -> bool:
        return branch.held is None or not self._caches.croppable(branch.held.cache)

    def _look(self, branch: CopiedBranch, held: Held, seen: int) -> None:
        branch.held, branch.seen = held, seen
        held.viewers += 1

    def _leave(self, branch: CopiedBranch) -> None:
        if branch.held is not None:
            branch.held.viewers -= 1
        branch.held, branch.seen = None, 0

    def _plan(self, branch: CopiedBranch, count: int) -> None:
        if branch.held is not None and (count or branch.planned):
            branch.held.planned = len(branch.again) + count if count else 0
        branch.planned = count

    def _cut(self, branch: CopiedBranch, length: int) -> None:
        """Only the first ``length`` tokens of the branch remain."""
        del branch.again[max(length - branch.seen, 0) :]
        held = branch.held
        if held is None or length >= branch.seen:
            return
        if self._caches.croppable(held.cache):
            branch.seen = length
        else:
            self._compute_again(branch, held.tokens[:length])

    def _compute_again(self, branch: CopiedBranch, tokens: list[int]) -> None:
        """The branch's context is ``tokens``: it looks at the longest cache that holds the first of them."""
        self._leave(branch)
        nearest = self._nearest(tokens)
        if nearest is not None:
            self._look(branch, nearest, len(nearest.tokens))
        branch.again = tokens[branch.seen :]

    def _own(self, branch: CopiedBranch) -> int | None:
        """Give the branch a cache of its own that holds what it sees -> the tokens of a copy; None: none was made."""
        held, seen, copied = branch.held, branch.seen, None
        if held is None:
            self._look(branch, Held(None, [], self._caches.version()), 0)
            return None
        if held.viewers > 1 or held.kept:
            self._leave(branch)
            held = Held(self._caches.copy(held.cache), list(held.tokens), held.version)
            self._look(branch, held, seen)
            copied = len(held.tokens)
            self.stats.copies += 1
            self.stats.tokens_copied += copied
        if len(held.tokens) > seen:
            if self._caches.crop(held.cache, len(held.tokens) - seen):
                del held.tokens[seen:]
            else:
                branch.again = [*held.tokens[:seen], *branch.again]
                self._leave(branch)
                self._look(branch, Held(None, [], self._caches.version()), 0)
        return copied

    def _check_work(self, work: Sequence[tuple[CopiedBranch, int]]) -> None:
        if not work:
            raise ValueError("work: expected at least one (branch, tokens) pair, got none")
        for branch, count in work:
            self._require_live("work", branch)
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise ValueError(f"work: expected an integer >= 1 of tokens for branch {branch.id}, got {count!r}")
            if branch.planned:
                raise ValueError(f"work: expected the {branch.planned} planned tokens of branch {branch.id} first")
        if len({branch.id for branch, _ in work}) != len(work):
            raise ValueError(f"work: expected each branch once, got ids {sorted(branch.id for branch, _ in work)}")
