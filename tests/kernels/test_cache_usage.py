"""Pages that branches see, and pages that releasing them frees, against what happens."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncthink_kernels.cache import OutOfPages, TreeCache

ACTIONS = st.lists(
    st.tuples(st.sampled_from(["root", "fork", "grow", "append", "link", "release"]), *[st.integers(0, 30)] * 3),
    max_size=25,
)


@given(ACTIONS, st.sets(st.integers(0, 20)))
def test_pages_are_counted_as_they_come_back(actions: list[tuple[str, int, int, int]], chosen: set[int]) -> None:
    cache = TreeCache(num_pages=40, page_size=4, chunk=8)
    for action, which, a, b in actions:
        branches = cache.branches
        if action == "root" or not branches:
            cache.root()
            continue
        one, other = branches[which % len(branches)], branches[a % len(branches)]
        try:
            if action == "fork":
                cache.fork(one, a % (one.length + 1))
            elif action == "grow":
                cache.plan([(one, 1 + a % 9)])
            elif action == "release":
                cache.release(one)
            elif other.length:
                start = b % other.length
                cache.join(one, other, start, other.length, action)  # type: ignore[arg-type]
        except (OutOfPages, ValueError):
            continue
    branches = [branch for number, branch in enumerate(cache.branches) if number in chosen]
    seen = {slot // 4 for branch in branches for slot in cache.slots(branch).tolist()}
    assert cache.pages_seen(branches) == len(seen)
    wanted, before = cache.pages_freed(branches), cache.free_pages
    for branch in branches:
        cache.release(branch)
    assert cache.free_pages - before == wanted
    cache.check()


def test_released_branches_are_refused() -> None:
    cache = TreeCache(num_pages=4, page_size=4, chunk=8)
    branch = cache.root()
    cache.release(branch)
    for count in (cache.pages_seen, cache.pages_freed):
        with pytest.raises(ValueError, match="branches: branch 0 was released"):
            count([branch])


def test_a_copy_is_of_whole_pages() -> None:
    cache = TreeCache(num_pages=12, page_size=4, chunk=8)
    source = cache.root()
    cache.plan([(source, 15)])
    fork = cache.fork(source, 8)
    cache.check_copy(fork, source, 8, 15)
    with pytest.raises(ValueError, match="dst: expected a fork of 9 tokens that wrote none, got"):
        cache.check_copy(fork, source, 9, 15)
    with pytest.raises(ValueError, match=r"span: expected \[9, 15\) in one node from the start of a page"):
        cache.check_copy(cache.fork(source, 9), source, 9, 15)
    second = cache.fork(source, 12)
    cache.plan([(second, 2)])
    with pytest.raises(ValueError, match=r"span: expected \[8, 14\) in one node"):
        cache.check_copy(fork, second, 8, 14)
    cache.plan([(fork, 1)])
    with pytest.raises(ValueError, match="dst: expected a fork of 9 tokens that wrote none, got"):
        cache.check_copy(fork, source, 9, 15)
