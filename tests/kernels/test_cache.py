"""The tree cache: who sees which slots, which pages come back when, and what is refused."""

from __future__ import annotations

import itertools

import pytest
import torch

from asyncthink_kernels.cache import (
    Branch,
    OutOfPages,
    TreeCache,
)
from call_count import calls_made


def grown(cache: TreeCache, tokens: int) -> Branch:
    branch = cache.root()
    cache.plan([(branch, tokens)])
    return branch


def state(cache: TreeCache) -> tuple[object, ...]:
    """Everything observable about the bookkeeping."""
    slots = [(b.id, b.segments, cache.slots(b).tolist()) for b in cache.branches]
    return cache.free_pages, slots, cache.stats.tokens_shared, cache.stats.tokens_copied


@pytest.fixture
def cache() -> TreeCache:
    return TreeCache(num_pages=12, page_size=4, chunk=8)


class TestFork:
    @pytest.mark.parametrize("at", range(12))
    def test_child_sees_the_prefix_and_nothing_is_copied(self, cache, at):
        parent = grown(cache, 11)
        used = cache.used_pages
        child = cache.fork(parent, at)
        assert child.length == at
        assert cache.used_pages == used
        assert cache.slots(child).tolist() == cache.slots(parent).tolist()[:at]
        assert cache.stats.tokens_shared == at

    def test_both_go_on_behind_a_mid_page_fork(self, cache):
        parent = grown(cache, 6)
        child = cache.fork(parent)
        cache.plan([(parent, 1), (child, 1)])
        assert cache.slots(parent).tolist() == [0, 1, 2, 3, 4, 5, 6]  # in the tail page it had
        assert cache.slots(child).tolist() == [0, 1, 2, 3, 4, 5, 8]  # on a page of its own

    def test_fork_inside_an_ancestor_and_inside_a_linked_span(self, cache):
        root = grown(cache, 5)
        child = cache.fork(root)
        cache.plan([(child, 5)])
        assert cache.slots(cache.fork(child, 3)).tolist() == cache.slots(root, 0, 3).tolist()
        organizer = grown(cache, 2)
        cache.join(organizer, child, 4, 9, "link")
        cache.plan([(organizer, 1)])
        inside = cache.fork(organizer, 5)
        assert cache.slots(inside).tolist() == [*cache.slots(organizer, 0, 2), *cache.slots(child, 4, 7)]
        cache.plan([(inside, 1)])
        cache.check()

    def test_children_pin_what_they_see_in_any_order_of_release(self):
        for order in itertools.permutations(range(4)):
            cache = TreeCache(num_pages=20, page_size=4, chunk=8)
            root = grown(cache, 14)
            family = [root, cache.fork(root, 13), cache.fork(root, 5)]
            cache.plan([(b, 2) for b in family])
            family.append(cache.fork(family[1]))
            for index in order:
                cache.release(family[index])
                cache.check()
                seen = {slot // 4 for b in cache.branches for slot in cache.slots(b).tolist()}
                assert cache.used_pages == len(seen)
            assert cache.used_pages == 0

    @pytest.mark.parametrize("at", [-1, 7, 2.0, True])
    def test_a_bad_place_is_refused(self, cache, at):
        parent = grown(cache, 6)
        before = state(cache)
        with pytest.raises(ValueError, match="at: expected"):
            cache.fork(parent, at)
        assert state(cache) == before


class TestTruncate:
    def test_undoes_a_step(self, cache):
        root = grown(cache, 6)
        before = state(cache)
        cache.plan([(root, 17)])
        cache.truncate(root, 6)
        assert state(cache) == before
        cache.check()
        cache.truncate(root, 0)
        assert cache.used_pages == 0
        cache.plan([(root, 1)])
        assert root.length == 1

    def test_keeps_what_another_branch_sees(self, cache):
        root = grown(cache, 6)
        child = cache.fork(root, 5)
        before = state(cache)
        with pytest.raises(ValueError, match="another branch sees the first 5 tokens, got 4"):
            cache.truncate(root, 4)
        assert state(cache) == before
        cache.truncate(root, 5)
        cache.release(child)
        cache.truncate(root, 4)
        assert root.length == 4

    def test_never_reaches_into_shared_or_linked_tokens(self, cache):
        root = grown(cache, 6)
        child = cache.fork(root)
        cache.plan([(child, 2)])
        with pytest.raises(ValueError, match=r"expected 6 .* to 8, got 5"):
            cache.truncate(child, 5)
        cache.join(root, child, 6, 8, "link")
        with pytest.raises(ValueError, match="expected 8"):
            cache.truncate(root, 7)
        with pytest.raises(ValueError, match="length"):
            cache.truncate(root, 9)


class TestJoin:
    def test_append_says_what_to_copy(self, cache):
        root = grown(cache, 6)
        worker = cache.fork(root, 4)
        cache.plan([(worker, 5), (root, 3)])
        scatter = cache.join(root, worker, 3, 8, "append")
        assert scatter.src_slots.tolist() == cache.slots(worker, 3, 8).tolist()
        assert scatter.dst_slots.tolist() == cache.slots(root, 9, 14).tolist()
        assert scatter.shift == 9 - 3
        assert (root.length, cache.stats.tokens_copied) == (14, 5)
        assert scatter.src_slots.dtype == scatter.dst_slots.dtype == torch.int64

    def test_append_of_a_linked_span_rotates_from_where_it_was_written(self, cache):
        worker = grown(cache, 4)
        middle = grown(cache, 3)
        cache.join(middle, worker, 1, 3, "link")  # written at 1, seen at 3
        dst = grown(cache, 8)
        assert cache.join(dst, middle, 3, 5, "append").shift == 8 - 1
        before = state(cache)
        with pytest.raises(ValueError, match="expected one position shift"):
            cache.join(dst, middle, 2, 5, "append")
        assert state(cache) == before

    def test_link_copies_nothing_and_outlives_the_worker(self, cache):
        worker = grown(cache, 12)
        root = grown(cache, 3)
        used = cache.used_pages
        assert cache.join(root, worker, 5, 11, "link") is None
        assert cache.used_pages == used
        assert cache.slots(root).tolist() == [*cache.slots(root, 0, 3), *cache.slots(worker, 5, 11)]
        assert root.segments[1].shift == 3 - 5
        cache.release(worker)  # its first page is seen by nobody now
        cache.check()
        assert cache.used_pages == used - 1
        cache.plan([(root, 1)])
        cache.release(root)
        assert cache.used_pages == 0

    def test_a_branch_may_link_its_own_past(self, cache):
        root = grown(cache, 3)
        cache.join(root, root, 0, 3, "link")
        assert cache.slots(root).tolist() == [0, 1, 2, 0, 1, 2]
        cache.plan([(root, 2)])
        cache.check()
        cache.release(root)
        assert cache.used_pages == 0

    @pytest.mark.parametrize(
        ("start", "stop", "mode", "message"),
        [
            (2, 2, "link", "stop: expected an integer >= 3"),
            (-1, 2, "append", "start: expected"),
            (0, 7, "append", "stop: expected at most src's length 6, got 7"),
            (0, 2, "exact", "mode: expected one of"),
        ],
    )
    def test_bad_spans_and_modes_are_refused(self, cache, start, stop, mode, message):
        src, dst = grown(cache, 6), grown(cache, 1)
        before = state(cache)
        with pytest.raises(ValueError, match=message):
            cache.join(dst, src, start, stop, mode)
        assert state(cache) == before


class TestExhaustion:
    def test_plan_is_all_or_nothing(self, cache):
        one, two = grown(cache, 16), grown(cache, 16)
        fresh = cache.root()
        before = state(cache)
        work = [(one, 4), (fresh, 4), (two, 9)]
        assert cache.pages_needed(work) == 5
        with pytest.raises(OutOfPages) as caught:
            cache.plan(work)
        assert (caught.value.needed, caught.value.free) == (5, 4)
        assert state(cache) == before
        cache.check()
        cache.plan(work[:2])

    def test_an_in_place_step_is_all_or_nothing(self, cache):
        work = [(grown(cache, 2), 1) for _ in range(3)]
        grown(cache, 28)
        cache.plan(work)
        cache.plan(work)
        assert cache.stats.plans_advanced == 1
        before = state(cache)
        with pytest.raises(OutOfPages, match="3 needed, 2 free"):
            cache.plan(work)
        assert state(cache) == before
        cache.release(work[2][0])
        cache.plan(work[:2])
        cache.check()

    def test_append_is_all_or_nothing_and_link_needs_no_page(self, cache):
        src, dst = grown(cache, 40), grown(cache, 4)
        before = state(cache)
        with pytest.raises(OutOfPages):
            cache.join(dst, src, 0, 40, "append")
        assert state(cache) == before
        cache.join(dst, src, 0, 40, "link")
        assert (dst.length, cache.free_pages) == (44, 1)


def test_a_long_life_needs_no_more_memory_than_a_short_one(cache):
    sizes = set()
    for _ in range(300):
        one = grown(cache, 20)
        two = cache.fork(one)
        cache.join(two, one, 3, 18, "link")
        cache.plan([(two, 3)])
        cache.truncate(two, 35)
        for branch in (one, two):
            cache.release(branch)
        sizes.add((cache._nodes.table.shape, cache._nodes.length.shape))
    assert len(sizes) == 1


class TestRefusals:
    def test_a_released_branch_is_refused_everywhere(self, cache):
        gone, live = grown(cache, 4), grown(cache, 4)
        cache.release(gone)
        before = state(cache)
        for act in (
            lambda: cache.release(gone),
            lambda: cache.fork(gone),
            lambda: cache.truncate(gone, 0),
            lambda: cache.slots(gone),
            lambda: cache.plan([(live, 1), (gone, 1)]),
            lambda: cache.join(live, gone, 0, 1, "link"),
            lambda: cache.join(gone, live, 0, 1, "append"),
        ):
            with pytest.raises(ValueError, match=f"branch {gone.id} was released"):
                act()
        assert state(cache) == before

    def test_a_branch_of_another_cache_is_refused(self, cache):
        stranger = TreeCache(4).root()
        with pytest.raises(ValueError, match="expected a branch of this cache"):
            cache.fork(stranger)

    @pytest.mark.parametrize("sizes", [(0, 4, 8), (4, 0, 8), (4, 4, 6), (4, 4, 0), (4.0, 4, 8)])
    def test_bad_sizes_are_refused(self, sizes):
        with pytest.raises(ValueError, match="expected"):
            TreeCache(*sizes)

    @pytest.mark.parametrize(
        "breakage",
        [
            lambda c, b: c._pool.allocate(1),
            lambda c, b: c._pool.release(c.slots(b, 0, 1) // 4),
            lambda c, b: c._nodes.retain(b.tail, 0, 1),
            lambda c, b: c._nodes.length.__setitem__(b.tail, 3),
            lambda c, b: c._nodes.position.__setitem__(b.tail, 1),
            lambda c, b: c._nodes.table.__setitem__((c._nodes.nodes[b.tail].rows[1], 1), 0),
            lambda c, b: c._branches._live.pop(b.id),
            lambda c, b: c._nodes.table.__setitem__((c._nodes.nodes[b.tail].rows[0], 1), 0),
        ],
    )
    def test_check_notices_a_broken_cache(self, cache, breakage):
        branch = grown(cache, 9)
        cache.check()
        breakage(cache, branch)
        with pytest.raises(RuntimeError, match="broken cache"):
            cache.check()


def test_fork_does_the_same_work_at_any_length():
    costs = set()
    for tokens in (1024, 32 * 1024):
        cache = TreeCache(num_pages=4096)
        root = grown(cache, tokens)
        cache.fork(root)
        costs.add(calls_made(lambda cache=cache, root=root: cache.fork(root)))
    assert len(costs) == 1


def test_slots_of_a_span_are_checked(cache):
    branch = grown(cache, 6)
    assert cache.slots(branch, 2, 5).tolist() == [2, 3, 4]
    assert cache.slots(branch, 3, 3).numel() == 0
    for start, stop in ((-1, 2), (3, 2), (0, 7)):
        with pytest.raises(ValueError, match="span: expected"):
            cache.slots(branch, start, stop)


def test_stats_count_pages_at_their_peak(cache):
    branch = grown(cache, 33)
    cache.truncate(branch, 1)
    assert (cache.used_pages, cache.stats.peak_pages) == (1, 9)
