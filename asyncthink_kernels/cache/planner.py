"""Builds a step's plan from the branches' segments, and advances it in place while nothing but lengths changes.

Letters: B branches in the work, M segments, G groups (a segment's part of one chunk), T rows, I items, E entries,
W pages of a chunk. A group is seen by a run of consecutive rows of its branch. Only segments are sorted: groups are
made in the order of items, and entries are written run by run, so that a plan costs little more than its own memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from .node import NodeTable, spans
from .pages import IntArray
from .plan import BEGIN, END, LENGTH, PARTIAL, ROW, SHIFT, StepPlan

Int32Array = npt.NDArray[np.int32]
LONG_RUN = 64  # entries a group, on average: from here on the runs of groups are written one by one


@dataclass(frozen=True)
class Tails:
    """The growing end of each branch of the work, [B] int64 each."""

    node: IntArray
    base: IntArray  # tokens of the branch before its tail node
    before: IntArray  # tokens of the tail node before this step
    count: IntArray  # new tokens of this step, >= 1


@dataclass(frozen=True)
class _Segments:
    """All segments of the work, in the order of branches, [M] int32 each."""

    node: Int32Array
    start: Int32Array
    stop: Int32Array
    shift: Int32Array
    branch: Int32Array
    begin: Int32Array  # chunks [begin, end) of the node
    end: Int32Array
    rank: Int32Array  # of the first chunk's partial, within the branch
    tails: IntArray  # [B] int64, the index of each branch's tail

    @classmethod
    def of(cls, fixed: list[IntArray], tails: Tails, chunk: int) -> _Segments:
        """`fixed` [*, 4] (node, start, stop, shift) of each branch, and then its tail."""
        per_branch = np.fromiter(map(len, fixed), dtype=np.int64, count=len(fixed)) + 1
        last = np.cumsum(per_branch) - 1
        table = np.empty((4, int(last[-1]) + 1), dtype=np.int32)
        is_fixed = np.ones(table.shape[1], dtype=np.bool_)
        is_fixed[last] = False
        table[:, is_fixed] = np.concatenate(fixed).T
        zero = np.zeros_like(tails.node)
        table[:, last] = (tails.node, zero, tails.before + tails.count, zero)
        node, start, stop, shift = table
        begin, end = start // chunk, (stop + chunk - 1) // chunk
        before = np.cumsum(end - begin, dtype=np.int32) - (end - begin)
        branch = np.repeat(np.arange(len(fixed), dtype=np.int32), per_branch)
        rank = before - before[np.concatenate([[0], last[:-1] + 1])][branch]
        return cls(node, start, stop, shift, branch, begin, end, rank, tails=last)


@dataclass(frozen=True)
class _Groups:
    """Parts of chunks that branches see, in the order of items and in each of branches, [G] int32 each."""

    segment: Int32Array
    chunk: Int32Array
    starts: IntArray  # [I] int64: the first group of each item
    first_item: IntArray  # [nodes] int64: of each node that is seen, by its place among them
    place: IntArray  # [M] int64: of each segment's node among those that are seen


def _spans(counts: Int32Array) -> Int32Array:
    """As `spans`, in int32: the arrays of a plan are large enough for memory to count."""
    ends = np.cumsum(counts, dtype=np.int32)
    return np.arange(ends[-1], dtype=np.int32) - np.repeat(ends - counts, counts)


def _groups(segments: _Segments) -> _Groups:
    """Of each node every chunk times every segment that sees the node, without those that do not see the chunk."""
    order = np.argsort(segments.node, kind="stable").astype(np.int32)
    node = segments.node[order]
    first = np.flatnonzero(np.concatenate([[True], node[1:] != node[:-1]]))  # segments of each node, in `order`
    number = np.diff(np.append(first, len(order))).astype(np.int32)
    low = np.minimum.reduceat(segments.begin[order], first)
    pairs = (np.maximum.reduceat(segments.end[order], first) - low) * number
    index = _spans(pairs)
    width = np.repeat(number, pairs)
    chunk = index // width
    segment = index - chunk * width
    segment += np.repeat(first.astype(np.int32), pairs)
    segment = order[segment]
    chunk += np.repeat(low, pairs)
    seen = (chunk >= segments.begin[segment]) & (chunk < segments.end[segment])
    if not seen.all():
        segment, chunk = segment[seen], chunk[seen]
    of = segments.node[segment]
    starts = np.flatnonzero(np.concatenate([[True], (of[1:] != of[:-1]) | (chunk[1:] != chunk[:-1])]))
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.repeat(np.arange(len(first)), number)
    return _Groups(segment, chunk, starts, np.searchsorted(of[starts], node[first]), place)


def _distinct_shifts(shift: Int32Array) -> tuple[Int32Array, Int32Array]:
    """Distinct shifts, 0 first and then ascending, and the index of each segment's shift."""
    zero = np.zeros(1, dtype=np.int32)
    if not shift.any():
        return zero, np.zeros_like(shift)
    others = np.unique(shift[shift != 0])
    return np.concatenate([zero, others]), np.where(shift == 0, 0, np.searchsorted(others, shift) + 1).astype(np.int32)


def _runs(segments: _Segments, groups: _Groups, chunk: int) -> Int32Array:
    """Each group's first entry [G, 5]: begin, end, and its partial's rank in its row. Row and shift are to come."""
    of, first = groups.segment, groups.chunk * chunk
    runs = np.empty((len(of), 5), dtype=np.int32)
    runs[:, BEGIN] = np.maximum(segments.start[of] - first, 0)
    runs[:, END] = np.minimum(segments.stop[of] - first, chunk)
    runs[:, PARTIAL] = segments.rank[of] + groups.chunk - segments.begin[of]
    return runs


def _entries(runs: Int32Array, counts: Int32Array, ends: IntArray, row_ptr: Int32Array) -> Int32Array:
    """Entries [E, 5] of `counts[g]` rows a group, in order: the row rises, what else `runs` [G, 5] says stays."""
    total = int(ends[-1])
    if total == len(runs):
        entries = runs
        entries[:, PARTIAL] += row_ptr[entries[:, ROW]]
        return entries
    if total >= LONG_RUN * len(runs):
        entries = np.empty((total, 5), dtype=np.int32)
        rows, last = np.arange(len(row_ptr), dtype=np.int32), 0
        for run, end in zip(runs.tolist(), ends.tolist(), strict=True):
            mine, first, stop = entries[last:end], run[ROW], run[ROW] + end - last
            mine[:, ROW] = rows[first:stop]
            mine[:, BEGIN : SHIFT + 1] = run[BEGIN : SHIFT + 1]
            mine[:, PARTIAL] = row_ptr[first:stop]
            mine[:, PARTIAL] += run[PARTIAL]
            last = end
        return entries
    entries = np.repeat(runs, counts, axis=0)
    entries[:, ROW] += _spans(counts)
    entries[:, PARTIAL] += row_ptr[entries[:, ROW]]
    return entries


class LivePlan:
    """A plan and the arrays behind it, which `advance` updates in place."""

    def __init__(self, nodes: NodeTable, fixed: list[IntArray], tails: Tails) -> None:
        """Plan the step in which the nodes of `tails`, already extended, have grown."""
        self._nodes = nodes
        chunk = nodes.chunk
        segments = _Segments.of(fixed, tails, chunk)
        groups = _groups(segments)
        starts, branch = groups.starts, segments.branch[groups.segment]
        node = segments.node[groups.segment[starts]].astype(np.int64)
        chunk_of_item = groups.chunk[starts].astype(np.int64)
        self._table_rows = nodes.rows_of(node, chunk_of_item)
        self._pages = nodes.table[self._table_rows].astype(np.int32).reshape(-1)

        offset = np.repeat(tails.before, tails.count) + spans(tails.count)  # row's own token within its tail node
        seen = np.repeat(segments.rank[segments.tails], tails.count) + offset // chunk + 1  # partials of each row
        self._row_ptr = np.concatenate([[0], np.cumsum(seen)]).astype(np.int32)
        self._positions = (np.repeat(tails.base, tails.count) + offset).astype(np.int32)
        tail_begin = groups.first_item[groups.place[segments.tails]]  # item of each tail node's first chunk
        tail_items = np.repeat(tail_begin, tails.count) + offset // chunk
        self._slots = self._slots_of(tail_items, offset % chunk)

        self._shifts, shift_index = _distinct_shifts(segments.shift)
        own = np.flatnonzero(np.isin(groups.segment, segments.tails))  # groups of tails, seen from their first row on
        skipped = np.zeros(len(branch), dtype=np.int32)
        skipped[own] = np.maximum(groups.chunk[own] * chunk - tails.before[branch[own]], 0)
        counts = tails.count[branch].astype(np.int32) - skipped  # rows of each group
        entry_end = np.cumsum(counts, dtype=np.int64)
        runs = _runs(segments, groups, chunk)
        runs[:, ROW] = ((np.cumsum(tails.count) - tails.count)[branch] + skipped).astype(np.int32)
        runs[:, SHIFT] = shift_index[groups.segment]
        high = runs[:, END].copy()
        self._entries = _entries(runs, counts, entry_end, self._row_ptr)

        self._items = np.empty((len(starts), 6), dtype=np.int32)
        edges = np.append(starts, len(branch))
        entry_edges = np.concatenate([[0], entry_end])[edges]
        columns = (
            np.arange(len(starts)) * nodes.width,
            0,
            np.maximum.reduceat(high, starts),
            nodes.position[node] + chunk_of_item * chunk,
            entry_edges[:-1],
            entry_edges[1:],
        )
        for column, values in enumerate(columns):
            self._items[:, column] = values

        # Each row's own token is the last that it sees: the end of its entry in its own chunk.
        entry_of = np.empty(len(starts), dtype=np.int64)  # by item of a tail: the end of its owner's entries
        group_items = np.repeat(np.arange(len(starts)), np.diff(edges))
        entry_of[group_items[own]] = entry_end[own]
        rows_behind = np.repeat(np.cumsum(tails.count), tails.count) - np.arange(len(offset))
        self._entries[entry_of[tail_items] - rows_behind, END] = offset % chunk + 1

        self._tail_nodes = tails.node
        self._tail_items = tail_begin + (tails.before + tails.count - 1) // chunk
        self._own_entries = entry_of[self._tail_items] - 1  # with one row a branch: of that row and its own chunk
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
