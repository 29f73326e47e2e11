"""The pool of page ids: which are held and which are free. It knows no contents."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


class OutOfPages(RuntimeError):  # noqa: N818 - an event to handle, not a fault
    """The pool has fewer free pages than an operation needs. Nothing was changed.

    `needed` pages were asked for, `free` were there. An ordinary event: wait, preempt or refuse.
    """

    def __init__(self, needed: int, free: int) -> None:
        super().__init__(f"out of pages: {needed} needed, {free} free")
        self.needed = needed
        self.free = free


def require_at_least(name: str, value: object, least: int) -> int:
    """Return `value` as an int; ValueError naming `name` unless it is an integer >= `least`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(f"{name}: expected an integer >= {least}, got {value!r}")
    return int(value)


class PagePool:
    """`num_pages` page ids, each either free or held exactly once.

    The free ids are a stack in one array, so taking or giving back n pages is O(n) in numpy.

        >>> pool = PagePool(num_pages=4, page_size=16)
        >>> held = pool.allocate(3)
        >>> held.tolist(), pool.free, pool.used
        ([0, 1, 2], 1, 3)
        >>> pool.release(held)
        >>> pool.free
        4

    Raises ValueError where a count is not positive.
    """

    def __init__(self, num_pages: int, page_size: int = 16) -> None:
        self.num_pages = require_at_least("num_pages", num_pages, 1)
        self.page_size = require_at_least("page_size", page_size, 1)
        self._stack: IntArray = np.arange(self.num_pages - 1, -1, -1, dtype=np.int64)
        self._free = self.num_pages
        self._held = np.zeros(self.num_pages, dtype=np.bool_)

    @property
    def free(self) -> int:
        return self._free

    @property
    def used(self) -> int:
        return self.num_pages - self._free

    def is_held(self, pages: IntArray) -> bool:
        """Whether every one of `pages` is held now."""
        return bool(self._held[pages].all())

    def allocate(self, n: int) -> IntArray:
        """Take n page ids, [n] int64. All or nothing: raises OutOfPages with the pool unchanged."""
        require_at_least("n", n, 0)
        if n > self._free:
            raise OutOfPages(n, self._free)
        pages = self._stack[self._free - n : self._free][::-1].copy()
        self._free -= n
        self._held[pages] = True
        return pages

    def release(self, pages: Sequence[int] | IntArray) -> None:
        """Give pages back. ValueError, with the pool unchanged, where one is unknown, not held or named twice."""
        ids = np.asarray(pages, dtype=np.int64)
        if ids.size == 0:
            return
        if ids.min() < 0 or ids.max() >= self.num_pages:
            raise ValueError(f"pages: expected ids in [0, {self.num_pages}), got {ids.tolist()}")
        if not self._held[ids].all() or np.unique(ids).size != ids.size:
            raise ValueError(f"pages: expected distinct held pages, got {ids.tolist()}")
        self._held[ids] = False
        self._stack[self._free : self._free + ids.size] = ids[::-1]
        self._free += ids.size
