"""TreePlan: which row of a step sees which tokens of which page. Made and checked once, used in every layer.

This is the one place that checks a plan. Whatever in it becomes an address is in range because the object exists: a
TreePlan that is made by hand is checked as it is made, and raises ValueError. The cache makes plans that are right by
construction and updates them in place (:class:`~asyncthink_kernels.cache.TreeCache`), so it makes them unchecked; under
``ASYNCTHINK_CHECK=1``, as in all tests, it checks each plan that it returns. `tree_attention` compares a plan's sizes
with its other arguments; no layer and no backend looks at the values again.

Letters: T rows, I items, E entries, N page ids, K shifts, P pages, S page_size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from asyncthink_kernels import _values
from asyncthink_kernels._checks import INT32, Checks

_OP = "tree_attention"  # errors name the op that the plan is for


@dataclass(frozen=True, kw_only=True, eq=False)
class TreePlan:
    """The plan of one step's `tree_attention`, the same for all layers of a cache of P pages of S slots.

    An *item* is a run of at most one chunk of a node's tokens; all rows that see it share them, and they are read once.
    An *entry* says that a row sees tokens [begin, end) of an item, moved by ``shifts[shift_index]`` positions.

    Args:
        items: [I, 6] int32: page_begin, offset, length, position, entry_begin, entry_end. The item's ``length`` tokens
            begin at in-page ``offset`` of page ``pages[page_begin]`` and run on through consecutive ``pages``; its
            entries are ``entries[entry_begin:entry_end]``; ``position`` is that of its first token. Items stand in the
            order of their entries, without gaps, from entry 0 to ``row_ptr[T]``; an item of length 0 without entries
            (entry_begin = entry_end) is padding.
        pages: [N] int32 page ids of all items. Ids beyond an item's tokens are never read.
        entries: [E, 5] int32: row, begin, end, shift_index, partial. Every entry belongs to one item; ``partial`` is
            ``row_ptr[row]`` plus the rank of the entry within its row. E is a capacity: entries from ``row_ptr[T]`` on
            are never read.
        row_ptr: [T + 1] int32: row r has entries with partials [row_ptr[r], row_ptr[r + 1]); a row may have none.
        positions: [T] int32 position of each row in its branch.
        shifts: [K] int32 position shifts, in tokens; ``shifts[0] == 0``. A shift that no entry names is not used.
        num_pages: P, the pages that page ids are checked against. A cache may have more.
        page_size: S.

    All tensors are contiguous and on one device. Their values must not be changed afterwards.

    Raises:
        ValueError: a shape, dtype, device or stride that does not fit, a page id, row, token range, shift index or
            partial out of range, or items that do not cover the entries in order. Values on a GPU are read only under
            ``ASYNCTHINK_CHECK=1``, as reading them makes the host wait.

    Two rows share four tokens in page 1; the second row sees only three of them:

    >>> import torch
    >>> int32 = lambda rows: torch.tensor(rows, dtype=torch.int32)
    >>> plan = TreePlan(
    ...     items=int32([[0, 0, 4, 0, 0, 2]]), pages=int32([1]), entries=int32([[0, 0, 4, 0, 0], [1, 0, 3, 0, 1]]),
    ...     row_ptr=int32([0, 1, 2]), positions=int32([4, 3]), shifts=int32([0]), num_pages=2, page_size=4)
    >>> plan.rows
    2
    """

    items: Tensor
    pages: Tensor
    entries: Tensor
    row_ptr: Tensor
    positions: Tensor
    shifts: Tensor
    num_pages: int
    page_size: int

    def __post_init__(self) -> None:
        self.check()

    @classmethod
    def unchecked(cls, **fields: Any) -> Self:
        """A plan of all its ``fields``, whose values are known to be right: a copy, or made by the cache."""
        plan = object.__new__(cls)
        plan.__dict__.update(fields)
        return plan

    @property
    def rows(self) -> int:
        """T."""
        return self.positions.shape[0]

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """What `tree_attention` takes of the plan, in the order of its arguments."""
        return self.items, self.pages, self.entries, self.row_ptr, self.positions, self.shifts

    def fits(self, q: Tensor, k_cache: Tensor) -> bool:
        """Whether it is a plan for queries q [T, Hq, D] and a cache [P, S, H, D] of at least its pages."""
        return (
            q.ndim == 3
            and k_cache.ndim == 4
            and q.shape[0] == self.positions.shape[0]
            and k_cache.shape[1] == self.page_size
            and k_cache.shape[0] >= self.num_pages
            and q.device == self.items.device
        )

    def to(self, device: torch.device | str) -> Self:
        """The plan with its tensors on ``device``; itself where they are there already."""
        if self.items.device == torch.device(device):
            return self
        fields = vars(self)
        moved = {name: value.to(device) for name, value in fields.items() if isinstance(value, Tensor)}
        return self.unchecked(**fields | moved)

    def check(self) -> None:
        """ValueError unless the plan is sound. For whoever has changed its values in place."""
        self._check_sizes()
        if _values.readable(self.items):
            self._check_items()
            self._check_entries()

    def _check_sizes(self) -> None:
        check = Checks(_OP, self.items.device)
        check.that(self.page_size >= 1, f"page_size must be at least 1, got {self.page_size}")
        check.tensor("items", self.items, ("I", 6), INT32, dense=True)
        check.tensor("pages", self.pages, ("N",), INT32, dense=True)
        check.tensor("entries", self.entries, ("E", 5), INT32, dense=True)
        check.tensor("positions", self.positions, ("T",), INT32, dense=True)
        check.tensor("row_ptr", self.row_ptr, ("T+1",), INT32, dense=True)
        check.tensor("shifts", self.shifts, ("K",), INT32, dense=True)
        T, size = self.rows, self.row_ptr.shape[0]
        check.that(size == T + 1, f"row_ptr must have T + 1 = {T + 1} elements for the T = {T} positions, got {size}")
        check.that(self.shifts.shape[0] >= 1, "shifts must have at least one element (0), got none")

    def _check_items(self) -> None:
        """Page ids count where an item's length reaches them."""
        begin, offset, length = self.items[:, :3].long().unbind(1)
        _values.in_range(_OP, "items (page_begin)", begin, 0, self.pages.shape[0] + 1)
        _values.in_range(_OP, "items (offset)", offset, 0, self.page_size)
        _values.in_range(_OP, "items (length)", length, 0, self.num_pages * self.page_size + 1)
        count = (length > 0) * ((offset + length + self.page_size - 1) // self.page_size)
        _values.in_range(_OP, "items (page_begin + pages of its tokens)", begin + count, 0, self.pages.shape[0] + 1)
        skipped = (begin - (count.cumsum(0) - count)).repeat_interleave(count)
        used = skipped + torch.arange(skipped.shape[0], device=skipped.device)
        _values.in_range(_OP, "pages", self.pages[used], 0, self.num_pages)
        if self.shifts[0] != 0:
            raise ValueError(f"{_OP}: shifts must begin with 0, got {self.shifts[0].item()}")

    def _check_entries(self) -> None:
        """Each entry in use is in one item, and each partial of a row is written by one entry."""
        items, entries, row_ptr = self.items, self.entries, self.row_ptr
        used = int(row_ptr[-1])
        if row_ptr[0] != 0 or used > entries.shape[0] or (row_ptr.diff() < 0).any():
            raise ValueError(
                f"{_OP}: row_ptr must rise from 0 to at most the {entries.shape[0]} entries, got {row_ptr.tolist()}"
            )
        length, begins, ends = items[:, 2].long(), items[:, 4].long(), items[:, 5].long()
        edges = torch.cat((begins, row_ptr[-1:])), torch.cat((row_ptr[:1], ends))
        if (edges[0] != edges[1]).any() or (begins > ends).any():
            raise ValueError(
                f"{_OP}: items (entry_begin, entry_end) must cover the {used} entries up to row_ptr[T] in order, "
                f"got {items[:, 4:].tolist()}"
            )
        item_length = torch.repeat_interleave(length, ends - begins)
        row, begin, end, shift, partial = entries[:used].long().unbind(1)
        _values.in_range(_OP, "entries (row)", row, 0, self.rows)
        _values.in_range(_OP, "entries (shift_index)", shift, 0, self.shifts.shape[0])
        outside = (begin < 0) | (begin > end) | (end > item_length)
        if outside.any():
            raise ValueError(
                f"{_OP}: entries (begin, end) must be inside their item, got {entries[:used][outside][0, 1:3].tolist()}"
            )
        stray = (partial < row_ptr[row]) | (partial >= row_ptr[row + 1])
        if stray.any() or (partial.sort().values.diff() == 0).any():
            raise ValueError(f"{_OP}: entries (partial) must number each row's entries from row_ptr[row], got others")
