"""One step's work list: which slots are written, and which row sees which tokens of which page."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from asyncthink_kernels import _values
from asyncthink_kernels.plan import TreePlan

PAGE_BEGIN, OFFSET, LENGTH, POSITION, ENTRY_BEGIN, ENTRY_END = range(6)
"""Columns of `TreePlan.items`."""
ROW, BEGIN, END, SHIFT, PARTIAL = range(5)
"""Columns of `TreePlan.entries`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StepPlan(TreePlan):
    """The :class:`TreePlan` of a cache's step, and where the step writes. Rows follow the order of the work.

    Args:
        slots: [T] int64, where each row's K and V are written. `append_kv` checks them.
        fresh: the rows of each branch where all branches are new, so that the step sees only its own rows; else None,
            also for one row a branch.

    Chunk boundaries are multiples of the cache's chunk size in the node, so they depend on the node alone, and items
    are ordered by node and chunk. An item has room for the pages of a whole chunk, -1 where nothing is written yet. A
    row sees its own token; causality among new tokens lies in the `end` of entries, which stand in each row in the
    order of its context. Shifts are distinct.

    On the CPU the tensors are views of the planner's buffers: the next `TreeCache.plan` may update them in place.
    A plan may have room for more than it holds: then the rest is padding, as :class:`PlanBuffers` makes it.
    """

    slots: Tensor
    fresh: tuple[int, ...] | None = None

    def check_if_asked(self) -> None:
        """Check a plan of the planner under ``ASYNCTHINK_CHECK=1``: it is right by construction."""
        if _values.everything():
            self.check()
