"""Nodes: runs of slots written by one branch each, their page tables and who reads them.

Lengths, positions and page tables of all nodes live in numpy arrays indexed by node id, so that a step can advance
a thousand nodes without touching a Python object of any of them.
Letters: C tokens of a chunk, S tokens of a page, W = C/S pages of a chunk, N tokens of a span.
"""

from __future__ import annotations

import numpy as np

from .pages import BoolArray, IntArray, PagePool

UNWRITTEN = -1
"""Table entry of a page the node has not reached: an impossible id, so that reading it is caught."""
LET_GO = 0
"""Table entry of a page given back inside a node. A valid id on purpose: an item of a linked span may begin before
the span, over tokens that no branch sees, and its unseen pages must still be in bounds."""


def spans(counts: IntArray) -> IntArray:
    """0..counts[0]-1, 0..counts[1]-1, ... concatenated, [sum(counts)] int64."""
    ends = np.cumsum(counts)
    total = int(ends[-1]) if ends.size else 0
    return np.arange(total, dtype=np.int64) - np.repeat(ends - counts, counts)


class Node:
    """What is kept of a node beside its arrays."""

    __slots__ = ("kept", "readers", "rows")

    def __init__(self) -> None:
        self.kept: IntArray | None = None  # page indices still held once the owner has let go; None while owned
        self.rows: list[int] = []  # table row of each chunk
        self.readers: dict[tuple[int, int], int] = {}  # [start, stop) of a segment -> how many segments


class NodeTable:
    """All nodes of a cache.

    A node is written by its owner alone and only at its end; its first token begins a page. A reader is a segment
    [start, stop) of a branch that does not write the node. While a node is owned it holds every page it has written;
    once its owner has let go it holds exactly the pages that a reader sees, and none when nobody does.
    """

    def __init__(self, pool: PagePool, chunk: int) -> None:
        self.pool = pool
        self.chunk = chunk
        self.width = chunk // pool.page_size  # W
        self.nodes: dict[int, Node] = {}
        self.length: IntArray = np.zeros(64, dtype=np.int64)  # tokens written, by node
        self.position: IntArray = np.zeros(64, dtype=np.int64)  # position of the first token, by node
        self.table: IntArray = np.full((64, self.width), UNWRITTEN, dtype=np.int64)  # page ids, by chunk row
        self._free_nodes = list(range(63, -1, -1))
        self._free_rows = list(range(63, -1, -1))

    def open(self, position: int) -> int:
        """A new empty owned node whose first token will stand at `position`."""
        if not self._free_nodes:
            old = self.length.size
            self.length = np.concatenate([self.length, np.zeros_like(self.length)])
            self.position = np.concatenate([self.position, np.zeros_like(self.position)])
            self._free_nodes.extend(range(2 * old - 1, old - 1, -1))
        node = self._free_nodes.pop()
        self.nodes[node] = Node()
        self.length[node] = 0
        self.position[node] = position
        return node

    def pages_for(self, lengths: IntArray, counts: IntArray) -> IntArray:
        """How many new pages each node of length `lengths` needs for `counts` more tokens."""
        size = self.pool.page_size
        return (lengths + counts + size - 1) // size - (lengths + size - 1) // size

    def extend(self, nodes: IntArray, counts: IntArray, pages: IntArray) -> None:
        """Let each of the distinct `nodes` grow by `counts` tokens into `pages` (as many as pages_for says)."""
        lengths = self.length[nodes]
        fresh = self.pages_for(lengths, counts)
        wanted = (lengths + counts + self.chunk - 1) // self.chunk
        for i in np.flatnonzero(wanted > (lengths + self.chunk - 1) // self.chunk).tolist():
            rows = self.nodes[int(nodes[i])].rows
            rows.extend(self._take_row() for _ in range(int(wanted[i]) - len(rows)))
        first = (lengths + self.pool.page_size - 1) // self.pool.page_size
        index = np.repeat(first, fresh) + spans(fresh)  # page index within its node
        rows_of_pages = self.rows_of(np.repeat(nodes, fresh), index // self.width)
        self.table[rows_of_pages, index % self.width] = pages
        self.length[nodes] += counts

    def rows_of(self, nodes: IntArray, chunks: IntArray) -> IntArray:
        """Table row of chunk `chunks[i]` of node `nodes[i]`."""
        known = self.nodes
        rows = [known[n].rows[c] for n, c in zip(nodes.tolist(), chunks.tolist(), strict=True)]
        return np.array(rows, dtype=np.int64)

    def slots(self, node: int, start: int, stop: int) -> IntArray:
        """Slots of tokens [start, stop) of a node, [N] int64."""
        size = self.pool.page_size
        offsets = np.arange(start, stop, dtype=np.int64)
        pages = self.table[self.nodes[node].rows].reshape(-1)[offsets // size]
        return pages * size + offsets % size

    def shrink(self, node: int, length: int) -> None:
        """Take back the tail of an owned node; no reader may see beyond `length`."""
        kept_pages = -(-length // self.pool.page_size)
        kept_rows = -(-length // self.chunk)
        self._let_go(node, np.arange(kept_pages, self._written_pages(node)), UNWRITTEN)
        rows = self.nodes[node].rows
        self._free_rows.extend(rows[kept_rows:])
        del rows[kept_rows:]
        self.length[node] = length
        if length == 0:
            self._forget(node)

    def retain(self, node: int, start: int, stop: int) -> None:
        """A segment [start, stop) now reads the node."""
        readers = self.nodes[node].readers
        readers[start, stop] = readers.get((start, stop), 0) + 1

    def drop(self, node: int, start: int, stop: int) -> None:
        """One segment [start, stop) reads the node no more; pages that nobody sees go back."""
        known = self.nodes[node]
        left = known.readers[start, stop] - 1
        if left:
            known.readers[start, stop] = left
            return
        del known.readers[start, stop]
        if known.kept is not None:
            self._reclaim(node, known.kept)

    def disown(self, node: int) -> None:
        """The writer lets go; pages that no reader sees go back."""
        kept = np.arange(self._written_pages(node))
        self.nodes[node].kept = kept
        self._reclaim(node, kept)

    def seen_beyond(self, node: int, length: int) -> int:
        """The largest `stop` of a reader, or 0 where none passes `length`."""
        return max((stop for _, stop in self.nodes[node].readers if stop > length), default=0)

    def held(self, node: int) -> IntArray:
        """Ids of the pages the node holds, in order."""
        known = self.nodes[node]
        index = np.arange(self._written_pages(node)) if known.kept is None else known.kept
        return self.table[known.rows].reshape(-1)[index]

    def needed(self, node: int) -> BoolArray:
        """Which pages of the node must be held: all written ones while it is owned, else those that readers see."""
        known, size = self.nodes[node], self.pool.page_size
        mask = np.full(self._written_pages(node), known.kept is None)
        for start, stop in known.readers:
            mask[start // size : -(-stop // size)] = True
        return mask

    def _written_pages(self, node: int) -> int:
        return -(-int(self.length[node]) // self.pool.page_size)

    def _reclaim(self, node: int, kept: IntArray) -> None:
        """Give back those of the page indices `kept` of an ownerless node that no reader sees."""
        seen = self.needed(node)[kept]
        self._let_go(node, kept[~seen], LET_GO)
        self.nodes[node].kept = kept[seen]
        if not self.nodes[node].readers:
            self._forget(node)

    def _let_go(self, node: int, index: IntArray, mark: int) -> None:
        rows = np.array(self.nodes[node].rows, dtype=np.int64)[index // self.width]
        self.pool.release(self.table[rows, index % self.width])
        self.table[rows, index % self.width] = mark

    def _forget(self, node: int) -> None:
        self._free_rows.extend(self.nodes.pop(node).rows)
        self._free_nodes.append(node)

    def _take_row(self) -> int:
        if not self._free_rows:
            old = self.table.shape[0]
            self.table = np.concatenate([self.table, np.empty_like(self.table)])
            self._free_rows.extend(range(2 * old - 1, old - 1, -1))
        row = self._free_rows.pop()
        self.table[row] = UNWRITTEN
        return row
