"""Branches with a cache each against plain lists: forks, cuts, snapshots, steps, failures and releases.

A cache is modelled by the list of tokens that it has read; one of a step that failed is poison.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from asyncthink.model.copied_branch import CopiedBranch
from asyncthink.model.copied_cache import CopiedCache
from asyncthink_kernels.cache import OutOfPages

pick = st.integers(0, 1 << 16)


class Lists:
    """Caches that are lists of tokens. Those beyond ``window`` tokens say that they can be cropped, and cannot."""

    def __init__(self, crops: bool, window: int) -> None:
        self.crops, self.window, self.weights = crops, window, 0

    def version(self) -> int:
        return self.weights

    def copy(self, cache: list[int] | None) -> list[int] | None:
        return None if cache is None else list(cache)

    def croppable(self, cache: list[int] | None) -> bool:
        return cache is None or self.crops

    def crop(self, cache: list[int] | None, remove: int) -> bool:
        if not self.crops or cache is None or len(cache) > self.window:
            return not remove
        del cache[len(cache) - remove :]
        return True


class Machine(RuleBasedStateMachine):
    @initialize(pages=st.integers(4, 40), state=st.integers(0, 2), crops=st.booleans(), window=st.integers(2, 30))
    def start(self, pages: int, state: int, crops: bool, window: int) -> None:
        self.caches = Lists(crops, window)
        self.cache = CopiedCache(self.caches, pages, 2, state)
        self.live: list[tuple[CopiedBranch, list[int]]] = []
        self.next_token = 0

    def some(self, choice: int) -> tuple[CopiedBranch, list[int]]:
        return self.live[choice % len(self.live)]

    @rule()
    def root(self) -> None:
        self.live.append((self.cache.root(), []))

    @precondition(lambda self: self.live)
    @rule(choice=pick, at=pick, only_known=st.booleans())
    def fork(self, choice: int, at: int, only_known: bool) -> None:
        branch, context = self.some(choice)
        at %= len(context) + 1
        if only_known:
            at = self.cache.forkable(branch, at)
        used = self.cache.used_pages
        child = self.cache.fork(branch, at)
        assert self.cache.used_pages == used or not self.caches.crops, "a fork takes nothing until it goes on"
        assert not only_known or len(child.again) <= len(branch.again)
        self.live.append((child, context[:at]))

    @precondition(lambda self: self.live)
    @rule(choice=pick, length=pick)
    def truncate(self, choice: int, length: int) -> None:
        branch, context = self.some(choice)
        length %= len(context) + 1
        self.cache.truncate(branch, length)
        del context[length:]

    @precondition(lambda self: self.live)
    @rule(choice=pick)
    def snapshot(self, choice: int) -> None:
        self.cache.snapshot(self.some(choice)[0])

    @precondition(lambda self: self.live)
    @rule(choice=pick)
    def release(self, choice: int) -> None:
        pair = self.some(choice)
        before, freed = self.cache.used_pages, self.cache.pages_freed([pair[0]])
        self.cache.release(pair[0])
        assert self.cache.used_pages == before - freed
        self.live = [other for other in self.live if other is not pair]
        with pytest.raises(ValueError, match="was not released"):
            self.cache.fork(pair[0])

    @precondition(lambda self: self.live)
    @rule(choices=st.lists(pick, min_size=1, max_size=4), counts=st.lists(st.integers(1, 5), min_size=4), fails=pick)
    def step(self, choices: list[int], counts: list[int], fails: int) -> None:
        pairs = list({pair[0].id: pair for pair in map(self.some, choices)}.values())
        work = [(branch, count) for (branch, _), count in zip(pairs, counts, strict=False)]
        used, needed = self.cache.used_pages, self.cache.pages_needed(work)
        assert self.cache.fits(work) == (needed <= self.cache.num_pages - used)
        if not self.cache.fits(work):
            with pytest.raises(OutOfPages):
                self.cache.plan(work)
            return
        plan = self.cache.plan(work)
        assert self.cache.used_pages <= max(used + needed, used)
        for number, (branch, count) in enumerate(work):
            context = pairs[number][1]
            held: Any = branch.held
            assert held.viewers == 1
            assert held.tokens + branch.again == context
            assert (held.cache or []) == held.tokens
            if fails % 8 == number:
                if held.cache is not None:
                    held.cache.append(-1)  # poison: it must not be read again
                self.cache.lost(plan, branch)
                break
            new = list(range(self.next_token, self.next_token + count))
            self.next_token += count
            self.cache.entered(branch, [*held.tokens, *branch.again, *new], new)
            context += new

    @invariant()
    def sound(self) -> None:
        if not hasattr(self, "cache"):
            return
        self.cache.check()
        for branch, context in self.live:
            assert branch.length == len(context)
            assert branch.tokens == context
            assert not self.caches.crops or not branch.again or branch.held is None or branch.seen == 0

    def teardown(self) -> None:
        if hasattr(self, "cache"):
            for branch, _ in self.live:
                self.cache.release(branch)
            assert self.cache.used_pages == 0


TestCopiedCache = Machine.TestCase
TestCopiedCache.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


def grown(cache: CopiedCache, branch: CopiedBranch, tokens: list[int]) -> None:
    cache.plan([(branch, len(tokens))])
    assert branch.held is not None
    cache.entered(branch, [*branch.held.tokens, *branch.again, *tokens], tokens)


def test_of_a_family_all_but_the_last_one_to_go_on_copy() -> None:
    cache = CopiedCache(Lists(False, 0), 64, 4)
    parent = cache.root()
    grown(cache, parent, [1, 2, 3])
    children = [cache.fork(parent) for _ in range(3)]
    for branch in (*children, parent):
        grown(cache, branch, [9])
    assert (cache.stats.copies, cache.stats.tokens_copied) == (3, 9)


def test_a_snapshot_gives_way_to_a_step() -> None:
    cache = CopiedCache(Lists(False, 0), 6, 1)
    branch = cache.root()
    grown(cache, branch, [1, 2])
    cache.snapshot(branch)
    grown(cache, branch, [3])
    assert cache.forkable(branch, 2) == 2
    assert cache.free_pages == 3
    grown(cache, branch, [4, 5])
    assert cache.forkable(branch, 2) == 0
    assert cache.fork(branch, 2).again == [1, 2]


def test_what_other_weights_computed_is_computed_again() -> None:
    caches = Lists(False, 0)
    cache = CopiedCache(caches, 64, 1)
    branch = cache.root()
    grown(cache, branch, [1, 2])
    cache.snapshot(branch)
    grown(cache, branch, [3])
    assert cache.fork(branch, 2).again == []
    caches.weights += 1
    assert cache.fork(branch, 2).again == [1, 2]


def test_marks_are_for_caches_that_cannot_be_cut() -> None:
    for crops in (True, False):
        cache = CopiedCache(Lists(crops, 99), 64, 4)
        branch = cache.root()
        grown(cache, branch, [1])
        assert cache.room_before_mark(branch, 9, {4, 6}) == (9 if crops else 3)
        assert cache.at_mark(branch, {1}) is not crops


def test_what_is_refused_changes_nothing() -> None:
    cache = CopiedCache(Lists(True, 99), 4, 4)
    branch = cache.root()
    grown(cache, branch, [1, 2])
    plan = cache.plan([(branch, 1)])
    refused = [
        lambda: cache.plan([(branch, 1)]),
        lambda: cache.plan([]),
        lambda: cache.plan([(cache.root(), 0)]),
        lambda: cache.plan([(cache.root(), 99)]),
        lambda: cache.fork(branch, 3),
        lambda: cache.truncate(branch, 4),
        lambda: cache.check_copy(branch, branch, 0, 1),
        lambda: cache.release(CopiedBranch(7)),
    ]
    for call in refused:
        with pytest.raises((ValueError, OutOfPages)):
            call()
    cache.lost(plan, branch)
    assert branch.tokens == [1, 2]
    for sizes in ((0, 4), (4, 0), (True, 4)):
        with pytest.raises(ValueError, match="expected an integer >= 1"):
            CopiedCache(None, *sizes)
