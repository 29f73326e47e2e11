"""How branches become longer: by slots of their own, or by what others wrote. Letters: B branches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .branch import NO_NODE, Branch, Segment
from .node import NodeTable
from .pages import IntArray
from .planner import Tails


def tail_lengths(nodes: NodeTable, branches: Sequence[Branch]) -> IntArray:
    """[B] tokens of each branch's own tail node."""
    tails = np.array([b.tail for b in branches])
    return np.where(tails == NO_NODE, 0, nodes.length[tails])


def grow(nodes: NodeTable, branches: Sequence[Branch], counts: IntArray) -> Tails:
    """Reserve `counts` slots in the tail nodes, opening where there is none."""
    before = tail_lengths(nodes, branches)
    pages = nodes.pool.allocate(int(nodes.pages_for(before, counts).sum()))
    for branch in branches:
        if branch.tail == NO_NODE:
            branch.tail = nodes.open(branch.base)
    tails = np.array([b.tail for b in branches])
    nodes.extend(tails, counts, pages)
    return Tails(node=tails, base=np.array([b.base for b in branches]), before=before, count=counts)


def link(nodes: NodeTable, dst: Branch, span: Sequence[Segment]) -> None:
    """Let `dst` see the segments behind what it sees; it goes on in a node of its own."""
    fixed = (*dst.segments, *span)
    for segment in fixed[len(dst.fixed) :]:
        nodes.retain(segment.node, segment.start, segment.stop)
    if dst.tail != NO_NODE:
        nodes.disown(dst.tail)
    dst.set_fixed(fixed)
    dst.tail = NO_NODE
