"""The tree cache against plain lists: any order of forks, steps, joins, truncations, releases and refusals.

10,000 cache operations, 100,000 with `-m slow`; ASYNCTHINK_CACHE_OPERATIONS=5000000 pytest -m slow <this file> makes
more.
"""

from __future__ import annotations

import os
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from asyncthink_kernels.cache import Branch, OutOfPages, StepPlan, TreeCache
from plan_reader import assert_row_sees, read_plan

MANY = int(os.environ.get("ASYNCTHINK_CACHE_OPERATIONS", "100000"))
EXAMPLES = 25  # a batch of machines; batches follow until there are enough operations
pick = st.integers(0, 1 << 16)
GEOMETRIES = [(1, 2), (2, 6), (4, 4), (4, 8), (16, 32)]


class CacheMachine(RuleBasedStateMachine):
    """Every branch has a twin: the list of token ids that its context must read."""

    operations = 0
    exhausted = 0
    refused = 0

    @initialize(geometry=st.sampled_from(GEOMETRIES), pages=st.integers(4, 40))
    def start(self, geometry: tuple[int, int], pages: int) -> None:
        self.page_size, chunk = geometry
        self.cache = TreeCache(pages, self.page_size, chunk)
        self.memory = np.full(pages * self.page_size, -1)  # token id in each slot
        self.live: list[tuple[Branch, list[int]]] = []
        self.gone: list[Branch] = []
        self.next_token = 0

    def some(self, choice: int) -> tuple[Branch, list[int]]:
        return self.live[choice % len(self.live)]

    def picture(self) -> tuple[object, ...]:
        return self.cache.free_pages, [(b.id, b.segments) for b in self.cache.branches], self.cache.stats.tokens_shared

    @contextmanager
    def counted(self):
        """An operation that may run out of pages; if it does, it must have changed nothing."""
        type(self).operations += 1
        before = self.picture()
        try:
            yield
        except OutOfPages as error:
            self.note_exhaustion(error, before)

    def note_exhaustion(self, error: OutOfPages, before: tuple[object, ...]) -> None:
        type(self).exhausted += 1
        assert error.needed > error.free == self.cache.free_pages
        assert self.picture() == before

    @contextmanager
    def refusal(self):
        type(self).operations += 1
        type(self).refused += 1
        before = self.picture()
        with pytest.raises(ValueError, match=r"expected|released|another branch"):
            yield
        assert self.picture() == before

    def write(self, plan: StepPlan, work: list[tuple[tuple[Branch, list[int]], int]]) -> None:
        slots = iter(plan.slots.tolist())
        for (_, tokens), count in work:
            for _ in range(count):
                self.memory[next(slots)] = self.next_token
                tokens.append(self.next_token)
                self.next_token += 1
        assert next(slots, None) is None

    def step(self, work: list[tuple[tuple[Branch, list[int]], int]]) -> StepPlan | None:
        pairs = [(branch, count) for (branch, _), count in work]
        with self.counted():
            needed, free = self.cache.pages_needed(pairs), self.cache.free_pages
            plan = self.cache.plan(pairs)
            assert self.cache.free_pages == free - needed
            self.write(plan, work)
            return plan
        return None

    @rule()
    def root(self) -> None:
        if len(self.live) < 8:
            with self.counted():
                self.live.append((self.cache.root(), []))

    @precondition(lambda self: self.live)
    @rule(which=pick, at=pick, inside=st.booleans())
    def fork(self, which: int, at: int, inside: bool) -> None:
        if len(self.live) >= 8:
            return
        branch, tokens = self.some(which)
        with self.counted():
            place = at % (len(tokens) + 1) if inside else None
            self.live.append((self.cache.fork(branch, place), tokens[:place]))

    @precondition(lambda self: self.live)
    @rule(count=st.integers(1, 6), which=pick, steps=st.integers(1, 12))
    def decode(self, count: int, which: int, steps: int) -> None:
        """The same branches, one token each, for some steps: plans grow in place."""
        work = [(self.some(which + i), 1) for i in range(min(count, len(self.live)))]
        plan = None
        for _ in range(steps):
            plan = self.step(work)
            if plan is None:
                return
        self.compare(plan, work)

    @precondition(lambda self: self.live)
    @rule(which=pick, counts=st.lists(st.integers(1, 20), min_size=1, max_size=3))
    def prefill(self, which: int, counts: list[int]) -> None:
        work = [(self.some(which + i), count) for i, count in enumerate(counts[: len(self.live)])]
        plan = self.step(work)
        if plan is not None:
            self.compare(plan, work)

    def compare(self, plan: StepPlan, work: list[tuple[tuple[Branch, list[int]], int]]) -> None:
        """Every row of the plan reads its branch's tokens up to itself."""
        rows = iter(read_plan(plan, self.page_size))
        for (branch, tokens), count in work:
            context = self.cache.slots(branch).tolist()
            assert self.memory[context].tolist() == tokens
            for length in range(len(tokens) - count + 1, len(tokens) + 1):
                assert_row_sees(next(rows), context[:length])

    @precondition(lambda self: any(tokens for _, tokens in self.live))
    @rule(dst=pick, src=pick, start=pick, stop=pick, mode=st.sampled_from(["append", "link"]))
    def join(self, dst: int, src: int, start: int, stop: int, mode: str) -> None:
        (to, to_tokens), (of, of_tokens) = self.some(dst), self.some(src)
        if not of_tokens or len(to_tokens) > 200:
            return
        start %= len(of_tokens)
        stop = start + 1 + stop % min(len(of_tokens) - start, 12)
        shifts = {s.shift for s in self.parts(of, start, stop)}
        if mode == "append" and len(shifts) > 1:
            with self.refusal():
                self.cache.join(to, of, start, stop, mode)
            return
        with self.counted():
            scatter = self.cache.join(to, of, start, stop, mode)
            if scatter is not None:
                assert scatter.shift == len(to_tokens) - start + shifts.pop()
                self.memory[scatter.dst_slots] = self.memory[scatter.src_slots]
            to_tokens.extend(of_tokens[start:stop])

    def parts(self, branch: Branch, start: int, stop: int):
        at = 0
        for segment in branch.segments:
            at += segment.stop - segment.start
            if at > start and at - (segment.stop - segment.start) < stop:
                yield segment

    @precondition(lambda self: self.live)
    @rule(which=pick, back=st.integers(1, 20))
    def truncate(self, which: int, back: int) -> None:
        branch, tokens = self.some(which)
        length = len(tokens) - back
        if length < 0 or not self.may_truncate(branch, length):
            with self.refusal():
                self.cache.truncate(branch, length)
            return
        with self.counted():
            self.cache.truncate(branch, length)
            del tokens[length:]

    def may_truncate(self, branch: Branch, length: int) -> bool:
        """Whether the slots given back are seen once in the forest, and by the tail of `branch`."""
        given = set(self.cache.slots(branch, length).tolist())
        others = [slot for b, _ in self.live if b is not branch for slot in self.cache.slots(b).tolist()]
        kept = self.cache.slots(branch, 0, length).tolist()
        own = branch.segments and branch.tail >= 0 and length >= branch.length - len(self.tail_slots(branch))
        return bool(own) and not given & {*others, *kept}

    def tail_slots(self, branch: Branch) -> range:
        return range(branch.segments[-1].start, branch.segments[-1].stop)

    @precondition(lambda self: self.live)
    @rule(which=pick)
    def release(self, which: int) -> None:
        with self.counted():
            branch, _ = self.live.pop(which % len(self.live))
            self.cache.release(branch)
            self.gone.append(branch)

    @precondition(lambda self: self.gone)
    @rule(which=pick)
    def use_after_release(self, which: int) -> None:
        gone = self.gone[which % len(self.gone)]
        acts = [lambda: self.cache.release(gone), lambda: self.cache.fork(gone), lambda: self.cache.plan([(gone, 1)])]
        with self.refusal():
            acts[which % 3]()

    @invariant()
    def books_are_right(self) -> None:
        if not hasattr(self, "cache"):
            return
        self.cache.check()
        assert self.cache.free_pages + self.cache.used_pages == self.cache.num_pages
        seen: set[int] = set()
        for branch, tokens in self.live:
            slots = self.cache.slots(branch).numpy()
            assert branch.length == len(tokens)
            assert self.memory[slots].tolist() == tokens
            seen.update((slots // self.page_size).tolist())
        assert self.cache.used_pages == len(seen)  # a page is held if and only if somebody sees a token on it

    def teardown(self) -> None:
        for branch, _ in getattr(self, "live", []):
            self.cache.release(branch)
        if hasattr(self, "cache"):
            assert self.cache.used_pages == 0
            assert not self.cache.branches
            self.cache.check()


SLOW = [pytest.mark.slow, pytest.mark.timeout(max(300, MANY // 100))]


@pytest.mark.parametrize("operations", [10_000, pytest.param(MANY, marks=SLOW)])
def test_any_history_reads_like_plain_lists(operations: int):
    class Machine(CacheMachine):
        """With counters of its own."""

    rules = settings(
        max_examples=EXAMPLES,
        stateful_step_count=60,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    batch = 0
    while Machine.operations < operations:
        run_state_machine_as_test(seed(batch)(Machine), settings=rules)
        batch += 1
        print(f"{Machine.operations} operations, {Machine.exhausted} out of pages")
    assert Machine.exhausted > operations // 100
    assert Machine.refused > operations // 100
