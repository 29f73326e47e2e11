"""How many pages some branches hold, alone or with others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from .branch import NO_NODE, Branch
from .node import NodeTable
from .pages import BoolArray


def pages_seen(nodes: NodeTable, branches: Sequence[Branch]) -> int:
    """Pages that at least one of these live branches sees."""
    return sum(int(_seen(nodes, node, spans).sum()) for node, spans in _spans(branches).items())


def pages_freed(nodes: NodeTable, branches: Sequence[Branch]) -> int:
    """Pages that would be free if these live branches, and no others, were released."""
    owned = {branch.tail for branch in branches} - {NO_NODE}
    fixed = Counter((s.node, s.start, s.stop) for branch in branches for s in branch.fixed)
    freed = 0
    for node in _spans(branches):
        known = nodes.nodes[node]
        if known.kept is None and node not in owned:
            continue  # another branch writes it, and so holds all of its pages
        left = [(a, b) for (a, b), count in known.readers.items() if count > fixed[node, a, b]]
        freed += int((nodes.needed(node) & ~_seen(nodes, node, left)).sum())
    return freed


def _spans(branches: Sequence[Branch]) -> dict[int, list[tuple[int, int]]]:
    """Node -> the spans [start, stop) of it that the branches see."""
    spans: dict[int, list[tuple[int, int]]] = {}
    for branch in branches:
        for s in branch.segments:
            spans.setdefault(s.node, []).append((s.start, s.stop))
    return spans


def _seen(nodes: NodeTable, node: int, spans: Sequence[tuple[int, int]]) -> BoolArray:
    """Which written pages of a node lie in one of the spans."""
    size = nodes.pool.page_size
    mask = np.zeros(-(-int(nodes.length[node]) // size), dtype=np.bool_)
    for start, stop in spans:
        mask[start // size : -(-stop // size)] = True
    return mask
