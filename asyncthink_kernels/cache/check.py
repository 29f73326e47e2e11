"""The invariants of the cache's bookkeeping, verified from scratch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from .branch import NO_NODE, Branch
from .node import UNWRITTEN, NodeTable


def _require(truth: bool, what: str) -> None:
    if not truth:
        raise RuntimeError(f"broken cache: {what}")


def check_nodes(nodes: NodeTable, branches: Sequence[Branch]) -> None:
    """RuntimeError naming the first broken invariant, where `branches` are all that read or write `nodes`."""
    readers: dict[int, Counter[tuple[int, int]]] = {node: Counter() for node in nodes.nodes}
    owners: Counter[int] = Counter()
    for branch in branches:
        at = 0
        for s in branch.segments:
            _require(s.node in nodes.nodes, f"{branch} sees the forgotten node {s.node}")
            _require(0 <= s.start < s.stop <= nodes.length[s.node], f"{branch} sees {s} outside its node")
            _require(nodes.position[s.node] + s.start + s.shift == at, f"{branch} misplaces {s} at {at}")
            at += s.stop - s.start
        for s in branch.fixed:
            readers[s.node][s.start, s.stop] += 1
        if branch.tail != NO_NODE:
            owners[branch.tail] += 1
    for node, known in nodes.nodes.items():
        _require(owners[node] == (known.kept is None), f"node {node} has {owners[node]} writers")
        _require(readers[node] == known.readers, f"node {node} counts readers {known.readers}, has {readers[node]}")
        _require(bool(readers[node]) or known.kept is None, f"node {node} has neither writer nor reader")
        _require(len(known.rows) == -(-nodes.length[node] // nodes.chunk), f"node {node} has {len(known.rows)} rows")
        needed = np.flatnonzero(nodes.needed(node)).tolist()
        kept = needed if known.kept is None else known.kept.tolist()
        _require(kept == needed, f"node {node} holds its pages {kept}, needs {needed}")
        unwritten = nodes.table[known.rows].reshape(-1)[-(-int(nodes.length[node]) // nodes.pool.page_size) :]
        _require(bool((unwritten == UNWRITTEN).all()), f"node {node} names pages beyond its length")
    held = [nodes.held(node) for node in nodes.nodes]
    pages = np.concatenate([*held, np.zeros(0, dtype=np.int64)])
    _require(np.unique(pages).size == pages.size, "two nodes hold the same page")
    _require(nodes.pool.is_held(pages), "a node holds a page that is free")
    _require(pages.size == nodes.pool.used, f"{nodes.pool.used} pages are used, {pages.size} of them by nodes")
    rows = [row for known in nodes.nodes.values() for row in known.rows]
    _require(len(set(rows)) == len(rows), "two chunks share a table row")
