"""Builds a step's plan from the branches' segments, and advances it in place while nothing but lengths changes.

Letters: B branches in the work, M segments, G groups (a segment's part of one chunk), T rows, I items, E entries,
W pages of a chunk. A group is seen by a run of consecutive rows of its branch, so sorting is done over groups, which
are few, and a long prefill only expands them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from .node import NodeTable, spans
from .pages import IntArray
from .plan import END, LENGTH, StepPlan

Int32Array = npt.NDArray[np.int32]
NO_LIMIT = np.iinfo(np.int32).max // 2


@dataclass(frozen=True)
class Tails:
    """The growing end of each branch of the work, [B] int64 each."""

    node: IntArray
    base: IntArray  # tokens of the branch before its tail node
    before: IntArray  # tokens of the tail node before this step
    count: IntArray  # new tokens of this step, >= 1


@dataclass(frozen=True)
class _Groups:
    """Parts [lo, hi) of chunks that branches see, in branch order, [G] int64 each."""

    branch: IntArray
    rank: IntArray  # index within the branch
    node: IntArray
    chunk: IntArray
    lo: IntArray
    hi: IntArray
    shift: IntArray
    limit: IntArray  # row j of the branch sees no token from limit + j on
    first_row: IntArray  # first row of the branch that sees anything of it


def _groups(fixed: list[IntArray], tails: Tails, chunk: int) -> _Groups:
    """Cut all segments, `fixed` [*, 4] (node, start, stop, shift) a branch and then its tail, at chunk boundaries."""
    per_branch = np.fromiter(map(len, fixed), dtype=np.int64, count=len(fixed)) + 1
    tail_at = np.cumsum(per_branch) - 1
    segments = np.empty((int(tail_at[-1]) + 1, 4), dtype=np.int64)
    is_tail = np.zeros(len(segments), dtype=np.bool_)
    is_tail[tail_at] = True
    segments[~is_tail] = np.concatenate(fixed)
    segments[is_tail] = np.stack(
        [tails.node, np.zeros_like(tails.node), tails.before + tails.count, np.zeros_like(tails.node)], axis=1
    )
    branch_of_segment = np.repeat(np.arange(len(fixed)), per_branch)

    node, start, stop, shift = segments.T
    chunks = (stop + chunk - 1) // chunk - start // chunk
    of = np.repeat(np.arange(len(segments)), chunks)
    at = (start // chunk)[of] + spans(chunks)
    branch = branch_of_segment[of]
    groups_per_branch = np.bincount(branch, minlength=len(fixed))
    reach = tails.before[branch] - at * chunk
    return _Groups(
        branch=branch,
        rank=spans(groups_per_branch),
        node=node[of],
        chunk=at,
        lo=np.maximum(start[of] - at * chunk, 0),
        hi=np.minimum(stop[of] - at * chunk, chunk),
        shift=shift[of],
        limit=np.where(is_tail[of], reach + 1, NO_LIMIT),
        first_row=np.where(is_tail[of], np.maximum(-reach, 0), 0),
    )


def _distinct_shifts(shift: IntArray) -> tuple[IntArray, IntArray]:
    """Distinct shifts, 0 first and then ascending, and the index of each group's shift."""
    if not shift.any():
        return np.zeros(1, dtype=np.int64), np.zeros_like(shift)
    others = np.unique(shift[shift != 0])
    return np.concatenate([[0], others]), np.where(shift == 0, 0, np.searchsorted(others, shift) + 1)


class LivePlan:
    """A plan and the arrays behind it, which `advance` updates in place."""

    def __init__(self, nodes: NodeTable, fixed: list[IntArray], tails: Tails) -> None:
        """Plan the step in which the nodes of `tails`, already extended, have grown."""
        self._nodes = nodes
        groups = _groups(fixed, tails, nodes.chunk)
        order = np.argsort(groups.node * (int(groups.chunk.max()) + 1) + groups.chunk, kind="stable")
        node, chunk = groups.node[order], groups.chunk[order]
        starts = np.flatnonzero(np.concatenate([[True], (node[1:] != node[:-1]) | (chunk[1:] != chunk[:-1])]))
        item_of_group = np.empty_like(order)
        item_of_group[order] = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(order))))
        self._table_rows = nodes.rows_of(node[starts], chunk[starts])
        self._pages = nodes.table[self._table_rows].astype(np.int32).reshape(-1)

        row_begin = np.cumsum(tails.count) - tails.count
        step = spans(tails.count)  # row's index within its branch
        offset = np.repeat(tails.before, tails.count) + step  # row's own token within its tail node
        last_group = np.cumsum(np.bincount(groups.branch)) - 1
        tail_chunks = (tails.before + tails.count - 1) // nodes.chunk
        first_tail_rank = groups.rank[last_group] - tail_chunks
        seen = np.repeat(first_tail_rank, tails.count) + offset // nodes.chunk + 1  # partials of each row
        self._row_ptr = np.concatenate([[0], np.cumsum(seen)]).astype(np.int32)
        self._positions = (np.repeat(tails.base, tails.count) + offset).astype(np.int32)
        tail_items = item_of_group[np.repeat(last_group - tail_chunks, tails.count) + offset // nodes.chunk]
        self._slots = self._slots_of(tail_items, offset % nodes.chunk)

        shifts, shift_index = _distinct_shifts(groups.shift)
        self._shifts = shifts.astype(np.int32)
        rows_of_group = (tails.count[groups.branch] - groups.first_row)[order]
        entry_end = np.cumsum(rows_of_group)
        self._entries = self._expand(groups, order, rows_of_group, row_begin, shift_index)
        self._items = np.empty((len(starts), 6), dtype=np.int32)
        ends = np.append(starts[1:], len(order)) - 1
        columns = (
            np.arange(len(starts)) * nodes.width,
            0,
            np.maximum.reduceat(groups.hi[order], starts),
            nodes.position[node[starts]] + chunk[starts] * nodes.chunk,
            (entry_end - rows_of_group)[starts],
            entry_end[ends],
        )
        for column, values in enumerate(columns):
            self._items[:, column] = values

        place = np.empty_like(order)
        place[order] = entry_end - 1
        self._tail_nodes = tails.node
        self._tail_items = item_of_group[last_group]
        self._own_entries = place[last_group]  # with one row a branch: the entry of that row and its own chunk
        new = (
            not tails.before.any() and not any(map(len, fixed)) and tails.count.max() > 1
        )  # a plan of one row a branch may be advanced
        self.plan = StepPlan.unchecked(
            slots=torch.from_numpy(self._slots),
            positions=torch.from_numpy(self._positions),
            items=torch.from_numpy(self._items),
            pages=torch.from_numpy(self._pages),
            entries=torch.from_numpy(self._entries),
            row_ptr=torch.from_numpy(self._row_ptr),
            shifts=torch.from_numpy(self._shifts),
            num_pages=nodes.pool.num_pages,
            page_size=nodes.pool.page_size,
            fresh=tuple(tails.count.tolist()) if new else None,
        )
        self.plan.check_if_asked()

    def _expand(
        self, groups: _Groups, order: IntArray, counts: IntArray, row_begin: IntArray, shift_index: IntArray
    ) -> Int32Array:
        """Entries [E, 5]: group by group in item order, one for each of the `counts` rows that see it."""
        first = groups.first_row[order]
        step = (np.repeat(first, counts) + spans(counts)).astype(np.int32)

        def spread(values: IntArray) -> Int32Array:
            return np.repeat(values[order].astype(np.int32), counts)

        rows = spread(row_begin[groups.branch]) + step
        entries = np.empty((len(rows), 5), dtype=np.int32)
        entries[:, 0] = rows
        entries[:, 1] = spread(groups.lo)
        entries[:, 2] = np.minimum(spread(groups.hi), spread(groups.limit) + step)
        entries[:, 3] = spread(shift_index)
        entries[:, 4] = self._row_ptr[rows] + spread(groups.rank)
        return entries

    def _slots_of(self, items: IntArray, offset: IntArray) -> IntArray:
        """Slots of the tokens at `offset` within `items`."""
        size = self._nodes.pool.page_size
        pages = self._pages[items * self._nodes.width + offset // size].astype(np.int64)
        slots: IntArray = pages * size + offset % size
        return slots

    def advance(self) -> bool:
        """One more token for every branch, in place; False, with nothing touched, where a tail enters a new chunk.

        Only for a plan of one row a branch whose topology has not changed. Raises OutOfPages before any change.
        """
        nodes, size = self._nodes, self._nodes.pool.page_size
        offset = nodes.length[self._tail_nodes] % nodes.chunk
        if not offset.all():
            return False
        fresh = np.flatnonzero(offset % size == 0)
        if fresh.size:
            pages = nodes.pool.allocate(fresh.size)
            items, index = self._tail_items[fresh], offset[fresh] // size
            nodes.table[self._table_rows[items], index] = pages
            self._pages[items * nodes.width + index] = pages
        nodes.length[self._tail_nodes] += 1
        self._positions += 1
        self._slots[:] = self._slots_of(self._tail_items, offset)
        self._items[self._tail_items, LENGTH] += 1
        self._entries[self._own_entries, END] += 1
        self.plan.check_if_asked()
        return True
