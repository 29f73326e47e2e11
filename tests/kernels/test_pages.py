"""The page pool: every page is free or held once."""

from __future__ import annotations

import pytest

from asyncthink_kernels.cache import OutOfPages, PagePool


def test_every_page_is_handed_out_once_and_comes_back():
    pool = PagePool(7, 16)
    one, two = pool.allocate(3), pool.allocate(4)
    assert sorted([*one, *two]) == list(range(7))
    assert (pool.free, pool.used) == (0, 7)
    pool.release(one)
    assert sorted(pool.allocate(3)) == sorted(one)


def test_exhaustion_is_all_or_nothing():
    pool = PagePool(4)
    pool.allocate(1)
    with pytest.raises(OutOfPages, match="4 needed, 3 free") as caught:
        pool.allocate(4)
    assert (caught.value.needed, caught.value.free) == (4, 3)
    assert sorted(pool.allocate(3)) == [1, 2, 3]


@pytest.mark.parametrize("pages", [[0, 0], [2], [-1], [4], [1, 9]])
def test_release_of_what_is_not_held_changes_nothing(pages):
    pool = PagePool(4)
    pool.allocate(2)
    with pytest.raises(ValueError, match="pages: expected"):
        pool.release(pages)
    assert pool.used == 2
    pool.release([0, 1])
    assert pool.used == 0
