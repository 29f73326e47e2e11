"""The cache with recurrent states against plain lists: forks, snapshots, rests, steps, failures and releases.

A state is modelled by the list of tokens that it has read; a slot that holds none, or one of a step that failed, is
poison: reading it fails the test.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from asyncthink_kernels.cache import Branch, OutOfPages, OutOfStates, StatefulCache, StatefulPlan

pick = st.integers(0, 1 << 16)
POISON = [-1]


class StateMachine(RuleBasedStateMachine):
    @initialize(slots=st.integers(2, 8), pages=st.integers(6, 40), by_token=st.booleans(), every=st.integers(1, 6))
    def start(self, slots: int, pages: int, by_token: bool, every: int) -> None:
        self.cache = StatefulCache(pages, 2, 4, num_states=slots, every=every, by_token=by_token)
        self.memory = [list(POISON) for _ in range(slots)]
        self.live: list[tuple[Branch, list[int]]] = []
        self.next_token = 0

    def some(self, choice: int) -> tuple[Branch, list[int]]:
        return self.live[choice % len(self.live)]

    def run_plan(self, plan: StatefulPlan, contexts: list[list[int]], new: list[list[int]]) -> None:
        """What a decoder does: the copies, then the passes, each over the slots that it names."""
        for source, destination in plan.copies:
            self.memory[destination] = list(self.memory[source])
        tokens = [token for part in new for token in part]
        owner = [place for place, part in enumerate(new) for _ in part]
        read = [list(context) for context in contexts]
        for one in plan.passes:
            assert list(one.slots) == sorted(set(one.slots))
            assert one.plan.slots.tolist() == plan.slots[one.rows.flatten()].tolist()
            for slot, rows in zip(one.slots, one.rows.tolist(), strict=True):
                place = owner[rows[0]]
                if one.fresh:
                    assert not read[place]
                    self.memory[slot] = []
                assert self.memory[slot] == read[place], "a pass reads another state than its branch's"
                assert one.fresh or not self.cache.by_token or len(rows) == 1
                taken = [tokens[row] for row in rows]
                self.memory[slot] = self.memory[slot] + taken
                read[place] += taken

    @rule()
    def root(self) -> None:
        self.live.append((self.cache.root(), []))

    @precondition(lambda self: self.live)
    @rule(choice=pick, at=pick)
    def fork(self, choice: int, at: int) -> None:
        branch, context = self.some(choice)
        wanted = at % (len(context) + 1)
        most = self.cache.forkable(branch, wanted)
        assert 0 <= most <= wanted
        child = self.cache.fork(branch, most)
        assert self.cache.restore(child), "a fork where the cache offered one has a state"
        self.live.append((child, context[:most]))

    @precondition(lambda self: self.live)
    @rule(choice=pick, at=pick)
    def fork_anywhere(self, choice: int, at: int) -> None:
        """Without a state the fork cannot go on, and says so."""
        branch, context = self.some(choice)
        at %= len(context) + 1
        child = self.cache.fork(branch, at)
        if not self.cache.restore(child):
            assert self.cache.forkable(branch, at) < at
            with pytest.raises(ValueError, match="no recurrent state"):
                self.cache.plan([(child, 1)])
        self.cache.release(child)

    @precondition(lambda self: self.live)
    @rule(choice=pick)
    def snapshot(self, choice: int) -> None:
        branch, context = self.some(choice)
        had = self.cache.restore(branch)
        self.cache.snapshot(branch)
        if had:
            assert self.cache.forkable(branch, len(context)) == len(context)

    @precondition(lambda self: self.live)
    @rule(choice=pick)
    def park(self, choice: int) -> None:
        self.cache.park(self.some(choice)[0])

    @precondition(lambda self: self.live)
    @rule(choices=st.lists(pick, min_size=1, max_size=4), counts=st.lists(st.integers(1, 5), min_size=4, max_size=4))
    def step(self, choices: list[int], counts: list[int]) -> None:
        chosen = list({choice % len(self.live): None for choice in choices})
        pairs = [self.live[number] for number in chosen if self.cache.restore(self.live[number][0])]
        if not pairs:
            return
        work = [(branch, count) for (branch, _), count in zip(pairs, counts, strict=False)]
        fits = self.cache.fits(work)
        before = [branch.length for branch, _ in work]
        if not fits:
            with pytest.raises(OutOfPages) as raised:
                self.cache.plan(work)
            assert raised.type is OutOfPages or not self.cache.states_fit(work)
            assert [branch.length for branch, _ in work] == before
            assert all(self.cache.restore(branch) for branch, _ in work)
            return
        plan = self.cache.plan(work)
        new = []
        for _, count in work:
            new.append(list(range(self.next_token, self.next_token + count)))
            self.next_token += count
        self.run_plan(plan, [context for _, context in pairs], new)
        self.cache.commit(plan)
        for (_, context), part in zip(pairs, new, strict=True):
            context += part
        assert plan.positions.tolist() == [b + i for b, (_, n) in zip(before, work, strict=True) for i in range(n)]

    @precondition(lambda self: self.live)
    @rule(choice=pick, count=st.integers(1, 3))
    def failed_step(self, choice: int, count: int) -> None:
        """A pass that fails leaves its slot unknown: the branch goes on from a snapshot, or from the beginning."""
        number = choice % len(self.live)
        branch, context = self.live[number]
        if not self.cache.restore(branch) or not self.cache.fits([(branch, count)]):
            return
        plan = self.cache.plan([(branch, count)])
        for source, destination in plan.copies:
            self.memory[destination] = list(self.memory[source])
        for one in plan.passes:
            for slot in one.slots:
                self.memory[slot] = list(POISON)
        shorter = self.cache.forkable(branch, len(context))
        self.live[number] = (self.cache.fork(branch, shorter), context[:shorter])
        self.cache.release(branch)

    @precondition(lambda self: self.live)
    @rule(choice=pick, back=st.integers(0, 4))
    def truncate(self, choice: int, back: int) -> None:
        branch, context = self.some(choice)
        length = max(len(context) - back, 0)
        try:
            self.cache.truncate(branch, length)
        except ValueError:
            return
        del context[length:]

    @precondition(lambda self: self.live)
    @rule(choice=pick)
    def release(self, choice: int) -> None:
        branch, _ = self.live.pop(choice % len(self.live))
        self.cache.release(branch)

    @invariant()
    def consistent(self) -> None:
        if not hasattr(self, "cache"):
            return
        self.cache.check()
        assert self.cache.used_states + self.cache._slots.free == self.cache.num_states
        for branch, context in self.live:
            assert branch.length == len(context)
        for branch, context in self.live:
            state = self.cache._states[branch.id]
            if state.slot != -1 and state.length >= 0:
                assert self.memory[state.slot] == context[: state.length]
            for length, snapshot in state.snapshots.items():
                if snapshot.slot != -1:
                    assert self.memory[snapshot.slot] == context[:length]

    def teardown(self) -> None:
        for branch, _ in getattr(self, "live", []):
            self.cache.release(branch)
        if hasattr(self, "cache"):
            assert self.cache.used_states == self.cache.used_pages == self.cache.snapshots == 0


TestStates = StateMachine.TestCase
TestStates.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)


def test_snapshots_give_way_to_steps_least_recently_used_first() -> None:
    cache = StatefulCache(16, 2, 4, num_states=3, every=1)
    branch = cache.root()
    for _ in range(2):
        cache.commit(cache.plan([(branch, 2)]))
        cache.snapshot(branch)
    cache.commit(cache.plan([(branch, 2)]))
    assert (cache.snapshots, cache.free_states, cache.forkable(branch, 3)) == (2, 2, 2)
    cache.release(cache.fork(branch, 2))  # uses the older one
    other = cache.root()
    cache.commit(cache.plan([(other, 1)]))
    assert (cache.forkable(branch, 3), cache.forkable(branch, 5)) == (2, 2)
    another = cache.root()
    cache.commit(cache.plan([(another, 1)]))
    assert cache.forkable(branch, 5) == 0
    with pytest.raises(OutOfStates, match="1 needed, 0 free"):
        cache.plan([(cache.root(), 1)])


def test_of_branches_that_share_a_state_all_but_one_copy_it() -> None:
    cache = StatefulCache(16, 2, 4, num_states=8)
    root = cache.root()
    cache.commit(cache.plan([(root, 3)]))
    children = [cache.fork(root) for _ in range(3)]
    assert cache.used_states == 1
    plan = cache.plan([(root, 1), *((child, 1) for child in children)])
    assert len(plan.copies) == 3 and len(plan.passes) == 1 and plan.passes[0].slots == (0, 1, 2, 3)


def test_a_join_by_keys_is_refused() -> None:
    cache = StatefulCache(16, 2, 4, num_states=8)
    with pytest.raises(ValueError, match="exact join, because this model has recurrent states"):
        cache.join(cache.root(), cache.root(), 0, 1, "link")
