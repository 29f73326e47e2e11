"""A plan in fixed-capacity buffers computes what the plan computes, wherever it lies and whatever lay there before."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from asyncthink_kernels import append_kv, tree_attention
from asyncthink_kernels.cache import Branch, Capacity, OutOfPages, PlanBuffers, StepPlan, TreeCache
from asyncthink_kernels.testing import IMPOSSIBLE, angles, normal

PAGES, SIZE, CHUNK = 120, 4, 8
HEADS, D, R = 2, 16, 4
FIELDS = ("slots", "positions", "items", "pages", "entries", "row_ptr", "shifts")


def small_cache() -> TreeCache:
    return TreeCache(PAGES, SIZE, CHUNK)


def move(cache: TreeCache, rng: random.Random) -> StepPlan:
    """Something happens to the branches, and then most of them step."""
    branches = list(cache.branches) or [cache.root()]
    branch, other = rng.choice(branches), rng.choice(branches)
    what = rng.random()
    if what < 0.3 and len(branches) < 9:
        branches.append(cache.fork(branch, rng.randint(0, branch.length)))
    elif what < 0.5 and branch is not other and other.length and len(branch.segments) < 6:
        start = rng.randrange(other.length)
        cache.join(branch, other, start, rng.randint(start + 1, other.length), "link")
    elif what < 0.7 and len(branches) > 1:
        cache.release(branch)
        branches.remove(branch)
    stepping = [each for each in branches if rng.random() < 0.8] or branches
    many = rng.random() < 0.3
    try:
        return cache.plan([(each, rng.randint(1, 7) if many else 1) for each in stepping])
    except OutOfPages:
        for each in cache.branches:
            cache.release(each)
        return cache.plan([(cache.root(), 5)])


def poison(buffers: PlanBuffers) -> None:
    """What the buffers hold becomes what nobody may look at."""
    buffers.tokens.fill_(IMPOSSIBLE[0])
    for name in FIELDS:
        getattr(buffers.plan, name).fill_(IMPOSSIBLE[2])


def attend(plan: StepPlan, q: Tensor, k_cache: Tensor, v_cache: Tensor) -> tuple[Tensor, Tensor]:
    cos, sin = (each.to(q.device) for each in angles(plan.shifts.cpu(), R))
    return tree_attention(q, k_cache, v_cache, plan, cos=cos, sin=sin, return_lse=True)


@settings(max_examples=25, deadline=None)
@given(rng=st.randoms(use_true_random=False))
def test_any_history_computes_the_same_in_the_same_place(device: str, rng: random.Random) -> None:
    cache = small_cache()
    caches = [normal((PAGES, SIZE, 1, D), torch.float32, seed).to(device) for seed in (1, 2)]
    roomy = PlanBuffers(Capacity(rows=64, items=512, entries=4096, pages=1024, shifts=256), device)
    places = [getattr(roomy.plan, name).data_ptr() for name in FIELDS]
    for _ in range(14):
        plan = move(cache, rng)
        T, used = len(plan.slots), len(plan.entries)
        q = normal((T, HEADS, D), torch.float32, 3).to(device)
        out, lse = attend(plan.to(device), q, *caches)
        for buffers in (roomy, PlanBuffers(Capacity.of(plan), device), PlanBuffers(Capacity.exact(plan), device)):
            poison(buffers)
            loaded = buffers.load(plan)
            assert loaded is buffers.plan
            wide = torch.cat([q, torch.full((buffers.capacity.rows - T, HEADS, D), torch.nan, device=device)])
            wide_out, wide_lse = attend(loaded, wide, *caches)
            assert torch.equal(wide_out[:T], out) and torch.equal(wide_lse[:T], lse)
            assert not wide_out[T:].any() and (wide_lse[T:] == -torch.inf).all()
            assert torch.equal(loaded.slots[:T].cpu(), plan.slots) and (loaded.slots[T:] == -1).all()
            assert not buffers.tokens.any()
            if buffers is roomy:
                assert (loaded.entries[used:] == IMPOSSIBLE[2]).all(), "entries beyond the plan's are not even sent"
        assert [getattr(roomy.plan, name).data_ptr() for name in FIELDS] == places


def test_padding_is_what_it_is_said_to_be(device: str) -> None:
    cache = small_cache()
    plan = cache.plan([(cache.root(), 5)])
    buffers = PlanBuffers(Capacity(rows=8, items=2, entries=9, pages=5, shifts=3), device)
    poison(buffers)
    loaded = buffers.load(plan)
    for name, rest in (("slots", [-1] * 3), ("positions", [0] * 3), ("row_ptr", [5] * 3), ("shifts", [0] * 2)):
        assert getattr(loaded, name).tolist() == [*getattr(plan, name).tolist(), *rest]
    assert loaded.items.tolist() == [*plan.items.tolist(), [0, 0, 0, 0, 5, 5]]
    assert loaded.pages.tolist() == [*plan.pages.tolist(), -1, -1, -1]
    assert loaded.entries.tolist() == [*plan.entries.tolist(), *[[IMPOSSIBLE[2]] * 5] * 4]


def test_padding_rows_write_nothing(device: str) -> None:
    cache = small_cache()
    plan = cache.plan([(cache.root(), 5)])
    loaded = PlanBuffers(Capacity.of(plan), device).load(plan)
    k_cache, v_cache = torch.full((2, PAGES, SIZE, 1, D), torch.nan, device=device).unbind()
    new = torch.ones(8, 1, D, device=device)
    append_kv(new, new, k_cache, v_cache, loaded.slots)
    for written in (k_cache, v_cache):
        assert (written.flatten(0, 1)[:5] == 1).all() and written.flatten(0, 1)[5:].isnan().all()


def test_tokens_travel_with_the_plan(device: str) -> None:
    cache = small_cache()
    plan = cache.plan([(cache.root(), 3)])
    buffers = PlanBuffers(Capacity.of(plan), device)
    buffers.load(plan, torch.tensor([5, 6, 7]))
    assert buffers.tokens.tolist() == [5, 6, 7, 0]
    buffers.load(cache.plan([(cache.root(), 2)]), torch.tensor([8, 9]))
    assert buffers.tokens.tolist() == [8, 9, 0, 0]
    buffers.load(plan)
    assert buffers.tokens.tolist() == [0] * 4


def test_one_allocation_on_vector_boundaries(device: str) -> None:
    buffers = PlanBuffers(Capacity(rows=3, items=1, entries=1, pages=5, shifts=1), device)
    fields = [buffers.tokens, *(getattr(buffers.plan, name) for name in FIELDS)]
    assert len({field.untyped_storage().data_ptr() for field in fields}) == 1
    assert all(field.data_ptr() % 16 == 0 and field.is_contiguous() for field in fields)
    ends = sorted((field.data_ptr(), field.data_ptr() + field.nbytes) for field in fields)
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(ends))


def test_an_advanced_plan_does_not_change_what_was_loaded(device: str) -> None:
    cache = small_cache()
    work: list[tuple[Branch, int]] = [(cache.root(), 1), (cache.root(), 1)]
    cache.plan(work)
    plan = cache.plan(work)
    buffers = [PlanBuffers(Capacity.of(plan), device) for _ in range(2)]
    first = buffers[0].load(plan)
    second = buffers[1].load(cache.plan(work))  # advanced in place
    assert cache.stats.plans_advanced == 2
    assert first.positions.tolist() == [1, 1] and second.positions.tolist() == [2, 2]


def test_made_in_inference_mode_and_filled_outside(device: str) -> None:
    cache = small_cache()
    plan = cache.plan([(cache.root(), 3)])
    with torch.inference_mode():
        buffers = PlanBuffers(Capacity.of(plan), device)
        buffers.load(plan)
    assert buffers.load(plan).slots.tolist() == [0, 1, 2, -1]


def test_capacities_are_few() -> None:
    cache = TreeCache(num_pages=2000, page_size=16, chunk=64)
    root = cache.root()
    cache.plan([(root, 200)])
    branches = [root, *(cache.fork(root) for _ in range(5))]
    plans = [cache.plan([(branch, 1) for branch in branches]) for _ in range(200)]
    met = {Capacity.of(plan) for plan in plans}
    assert Capacity.of(plans[-1]) == Capacity(rows=8, items=32, entries=64, pages=128, shifts=1)
    assert all(size & (size - 1) == 0 for capacity in met for size in capacity)
    assert len(met) == len({(capacity.rows, capacity.items, capacity.entries) for capacity in met}) == 3


def test_a_capacity_holds_its_plan() -> None:
    rng = random.Random(3)
    cache = TreeCache(PAGES, SIZE, chunk=12)
    for _ in range(200):
        plan = move(cache, rng)
        for size, room in zip(Capacity.exact(plan), Capacity.of(plan), strict=True):
            assert size <= room < 4 * max(size, 8)


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("rows", "rows: expected at most 7, the buffers' capacity, got 8"),
        ("items", "items: expected at most 0, .* got 1"),
        ("entries", "entries: expected at most 7, .* got 8"),
        ("pages", "pages: expected at most 1, .* got 2"),
        ("shifts", "shifts: expected at most 0, .* got 1"),
    ],
)
def test_what_does_not_fit_is_refused_untouched(field: str, message: str, device: str) -> None:
    cache = small_cache()
    plan = cache.plan([(cache.root(), 8)])
    exact = Capacity.exact(plan)
    buffers = PlanBuffers(exact._replace(**{field: getattr(exact, field) - 1}), device)
    poison(buffers)
    with pytest.raises(ValueError, match=message):
        buffers.load(plan, torch.zeros(8, dtype=torch.int64))
    assert (buffers.plan.slots == IMPOSSIBLE[2]).all() and (buffers.tokens == IMPOSSIBLE[0]).all()


def test_what_is_no_plan_of_the_cpu_is_refused() -> None:
    cache = small_cache()
    plan = cache.plan([(cache.root(), 3)])
    buffers = PlanBuffers(Capacity.of(plan), "cpu")
    with pytest.raises(ValueError, match=r"slots: expected torch.int64 on the CPU, got torch.int64 on meta"):
        buffers.load(plan.to("meta"))
    with pytest.raises(ValueError, match=r"tokens: expected torch.int64 on the CPU, got torch.int32 on cpu"):
        buffers.load(plan, torch.zeros(3, dtype=torch.int32))
    with pytest.raises(ValueError, match=r"tokens: expected one for each of 3 rows, got 4"):
        buffers.load(plan, torch.zeros(4, dtype=torch.int64))
    assert not buffers.plan.row_ptr.any()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_loads_in_a_row_do_not_meet_and_nobody_waits() -> None:
    cache = TreeCache(4000, 16)
    plans = [cache.plan([(cache.root(), 1 + i)]) for i in range(40)]
    buffers = PlanBuffers(Capacity(rows=64, items=64, entries=256, pages=4096, shifts=1), "cuda")
    buffers.load(plans[0])
    kept = []
    torch.cuda.set_sync_debug_mode("error")
    try:
        for plan in plans:
            torch.cuda._sleep(1_000_000)  # the copies queue up behind it
            kept.append(buffers.load(plan).slots.clone())
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for plan, slots in zip(plans, kept, strict=True):
        assert slots.tolist() == plan.slots.tolist() + [-1] * (64 - len(plan.slots))
