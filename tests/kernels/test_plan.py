"""The step plan against what each row must see, counted token by token."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncthink_kernels.cache import Branch, OutOfPages, StepPlan, TreeCache, planner
from call_count import calls_made
from plan_reader import assert_row_sees, assert_same_plan, read_plan


def assert_plan_is_what_branches_see(cache: TreeCache, plan: StepPlan, work: list[tuple[Branch, int]]) -> None:
    rows = iter(read_plan(plan, cache.page_size))
    slots, positions = iter(plan.slots.tolist()), iter(plan.positions.tolist())
    for branch, count in work:
        context = cache.slots(branch).tolist()
        for position in range(branch.length - count, branch.length):
            assert next(slots) == context[position]
            assert next(positions) == position
            assert_row_sees(next(rows), context[: position + 1])
    assert next(rows, None) is None


def tree(cache: TreeCache) -> list[Branch]:
    """A forest with forks of forks, a fork into the past, a link join and a linked past."""
    root = cache.root()
    cache.plan([(root, 13)])
    child = cache.fork(root)
    cache.plan([(child, 6), (root, 3)])
    grandchild = cache.fork(child, 15)
    early = cache.fork(child, 5)
    other = cache.root()
    cache.plan([(grandchild, 1), (early, 9), (other, 4)])
    cache.join(other, child, 11, 18, "link")
    cache.join(other, early, 2, 13, "link")
    return [root, child, grandchild, early, other]


@pytest.mark.parametrize(("page_size", "chunk"), [(1, 1), (1, 7), (3, 6), (4, 4), (4, 8), (16, 16), (16, 512)])
def test_rows_see_their_context_and_themselves_alone(page_size, chunk):
    cache = TreeCache(400, page_size, chunk)
    branches = tree(cache)
    for counts in ((1, 1, 1, 1, 1), (5, 1, 17, 2, 9), (1, 30, 1, 1, 1)):
        work = list(zip(branches, counts, strict=True))
        assert_plan_is_what_branches_see(cache, cache.plan(work), work)
        assert_plan_is_what_branches_see(cache, cache.plan(work[3:1:-1]), work[3:1:-1])


def test_the_documented_fields_of_a_small_plan():
    cache = TreeCache(8, page_size=2, chunk=4)
    root = cache.root()
    cache.plan([(root, 5)])
    child = cache.fork(root, 3)
    plan = cache.plan([(child, 2), (root, 1)])
    assert plan.slots.tolist() == [6, 7, 5]
    assert plan.positions.tolist() == [3, 4, 5]
    assert plan.items.tolist() == [[0, 0, 4, 0, 0, 3], [2, 0, 2, 4, 3, 4], [4, 0, 2, 3, 4, 6]]
    assert plan.pages.tolist() == [0, 1, 2, -1, 3, -1]
    assert plan.entries.tolist() == [
        [0, 0, 3, 0, 0],
        [1, 0, 3, 0, 2],
        [2, 0, 4, 0, 4],
        [2, 0, 2, 0, 5],
        [0, 0, 1, 0, 1],
        [1, 0, 2, 0, 3],
    ]
    assert plan.row_ptr.tolist() == [0, 2, 4, 6]
    assert plan.shifts.tolist() == [0]
    assert plan.fresh is None
    assert (plan.num_pages, plan.page_size) == (cache.num_pages, cache.page_size)
    dtypes = {name: value.dtype for name, value in vars(plan).items() if isinstance(value, torch.Tensor)}
    assert dtypes.pop("slots") == torch.int64
    assert set(dtypes.values()) == {torch.int32}
    assert plan.to("cpu") is plan
    assert [tensor.tolist() for tensor in plan.tensors] == [
        getattr(plan, name).tolist() for name in ("items", "pages", "entries", "row_ptr", "positions", "shifts")
    ]


def test_many_branches_on_one_prefix_each_see_it_and_themselves():
    cache = TreeCache(400, page_size=4, chunk=8)
    root = cache.root()
    cache.plan([(root, 21)])
    work = [(cache.fork(root), 1 + i % 3) for i in range(64)]
    assert_plan_is_what_branches_see(cache, cache.plan(work), work)
    work = [(branch, 1) for branch, _ in work]
    for _ in range(9):
        assert_plan_is_what_branches_see(cache, cache.plan(work), work)


def test_linked_parts_carry_their_shift_and_distinct_shifts_are_listed_once():
    cache = TreeCache(40, page_size=4, chunk=8)
    worker, root = cache.root(), cache.root()
    cache.plan([(worker, 12), (root, 5)])
    for start in (2, 3, 2):
        cache.join(root, worker, start, 12, "link")
    plan = cache.plan([(root, 1), (worker, 1)])
    assert plan.shifts.tolist() == [0, 5 - 2, 15 - 3, 24 - 2]
    assert_plan_is_what_branches_see(cache, plan, [(root, 1), (worker, 1)])


def cuts(cache: TreeCache, plan: StepPlan, row: int) -> list[tuple[int, int, int]]:
    return [part.cut for part in read_plan(plan, cache.page_size)[row]]


def test_chunk_boundaries_do_not_depend_on_siblings_or_forks():
    alone, crowded = (TreeCache(200, page_size=4, chunk=8) for _ in range(2))
    solo, organizer = alone.root(), crowded.root()
    workers: list[Branch] = []
    for step in range(30):
        lonely = alone.plan([(solo, 3)])
        work = [*((w, 1) for w in workers), (organizer, 3)]
        busy = crowded.plan(work)
        for row in range(3):
            assert cuts(alone, lonely, row) == cuts(crowded, busy, len(workers) + row)
        if step % 4 == 1:
            workers.append(crowded.fork(organizer, organizer.length - step % 3))
        if step % 9 == 8:
            crowded.release(workers.pop(0))


STEPS = st.sampled_from(["step", "step", "step", "fork", "truncate", "link", "append"])


@settings(max_examples=60, deadline=None)
@given(starts=st.lists(st.integers(1, 40), min_size=1, max_size=6), steps=st.lists(STEPS, min_size=1, max_size=40))
def test_in_place_plans_equal_freshly_built_ones(starts, steps):
    incremental, rebuilt = (TreeCache(400, page_size=4, chunk=16) for _ in range(2))

    def run(cache: TreeCache, branches: list[Branch], step: str) -> StepPlan:
        if step == "fork":
            branches.append(cache.fork(branches[0], branches[0].length // 2))
        if step in ("link", "append"):
            cache.join(branches[-1], branches[0], 0, 1, step)
        if step == "truncate" and branches[-1].segments[-1].stop > 1 and branches[-1].tail >= 0:
            cache.truncate(branches[-1], branches[-1].length - 1)
        return cache.plan([(branch, 1) for branch in branches])

    pairs = []
    for cache in (incremental, rebuilt):
        branches = [cache.root() for _ in starts]
        cache.plan(list(zip(branches, starts, strict=True)))
        pairs.append(branches)
    for step in ["step", *steps]:
        rebuilt.release(rebuilt.root())  # any change of topology makes the next plan a fresh one
        assert_same_plan(run(incremental, pairs[0], step), run(rebuilt, pairs[1], step))
    assert rebuilt.stats.plans_advanced == 0
    assert incremental.stats.plans_advanced + incremental.stats.plans_built == rebuilt.stats.plans_built


def test_only_a_new_chunk_or_a_new_topology_rebuilds():
    cache = TreeCache(100, page_size=4, chunk=16)
    branches = [cache.root() for _ in range(3)]
    work = [(branch, 1) for branch in branches]
    plans = [cache.plan(work) for _ in range(32)]
    assert cache.stats.plans_built == 2
    assert plans[0] is plans[15]
    assert_plan_is_what_branches_see(cache, plans[-1], work)
    cache.plan(work[:2])
    cache.plan([(branch, 1) for branch in branches])
    assert cache.stats.plans_built == 4


def many(count: int) -> tuple[TreeCache, list[tuple[Branch, int]]]:
    """`count` branches on one 4K prefix, one step after their first."""
    cache = TreeCache(num_pages=4096)
    root = cache.root()
    cache.plan([(root, 4096)])
    work = [(cache.fork(root), 1) for _ in range(count)]
    cache.plan(work)
    return cache, work


def test_a_thousand_branches_advance_with_the_calls_of_eight(monkeypatch):
    monkeypatch.delenv("ASYNCTHINK_CHECK")  # as users run it
    calls = []
    for count in (8, 1024):
        cache, work = many(count)
        calls.append([calls_made(lambda cache=cache, work=work: cache.plan(work)) for _ in range(40)])
        assert cache.stats.plans_advanced == 40  # pages were taken on the way
    assert calls[0] == calls[1]
    assert max(calls[0]) < 100


def test_a_rebuild_of_a_thousand_branches_calls_little_for_each():
    costs = []
    for count in (8, 1024):
        cache, work = many(count)
        cache.release(cache.root())
        costs.append(calls_made(lambda cache=cache, work=work: cache.plan(work)))
    assert costs[1] - costs[0] < 16 * (1024 - 8)


def test_a_long_prefill_is_planned_in_calls_that_do_not_grow_with_rows():
    costs = []
    for tokens in (2048, 32768):
        cache = TreeCache(num_pages=4096)
        root = cache.root()
        costs.append(calls_made(lambda cache=cache, root=root, tokens=tokens: cache.plan([(root, tokens)])))
    assert costs[1] < 2 * costs[0]


def test_every_row_of_a_prefill_over_a_shared_prefix_is_causal():
    cache = TreeCache(200, page_size=4, chunk=16)
    root = cache.root()
    work = [(root, 70)]
    assert_plan_is_what_branches_see(cache, cache.plan(work), work)
    work = [(root, 40), (cache.fork(root, 33), 50)]
    assert_plan_is_what_branches_see(cache, cache.plan(work), work)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda b: [], "at least one"),
        (lambda b: [(b, 0)], "work: expected an integer >= 1 of tokens for branch 0, got 0"),
        (lambda b: [(b, 1.5)], "expected an integer >= 1 of tokens .* got 1.5"),
        (lambda b: [(b, 1), (b, 2)], "expected each branch once"),
        (lambda b: [(None, 1)], "expected a branch of this cache, got None"),
    ],
)
def test_bad_work_is_refused_and_changes_nothing(make, message):
    cache = TreeCache(8, page_size=4, chunk=8)
    branch = cache.root()
    cache.plan([(branch, 5)])
    for act in (cache.plan, cache.pages_needed):
        with pytest.raises(ValueError, match=message):
            act(make(branch))
    assert (branch.length, cache.used_pages) == (5, 2)


def test_a_plan_that_failed_for_pages_can_be_made_later_and_is_right():
    cache = TreeCache(8, page_size=4, chunk=8)
    root, hog = cache.root(), cache.root()
    cache.plan([(root, 12), (hog, 20)])
    work = [(root, 1)]
    with pytest.raises(OutOfPages):
        cache.plan(work)
    cache.release(hog)
    assert_plan_is_what_branches_see(cache, cache.plan(work), work)


def test_the_plans_of_a_cache_are_checked_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both a new plan and one that was updated in place, under ASYNCTHINK_CHECK=1, which the tests set."""
    cache = TreeCache(8, page_size=2, chunk=4)
    work = [(cache.root(), 1)]
    plan = cache.plan(work)
    plan.entries[0, 0] = 1  # what a mistake of the planner would do
    with pytest.raises(ValueError, match=r"entries \(row\) must be in \[0, 1\), got 1"):
        cache.plan(work)
    monkeypatch.delenv("ASYNCTHINK_CHECK")
    assert cache.plan(work) is plan
    monkeypatch.setenv("ASYNCTHINK_CHECK", "1")
    monkeypatch.setattr(planner, "_entries", lambda *_: plan.entries.numpy())
    with pytest.raises(ValueError, match=r"entries \(row\) must be in \[0, 1\), got 1"):
        cache.plan([(cache.root(), 1)])
