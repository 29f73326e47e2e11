"""One step's work list: which slots are written, and which row sees which tokens of which page."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

PAGE_BEGIN, OFFSET, LENGTH, POSITION, ENTRY_BEGIN, ENTRY_END = range(6)
"""Columns of `StepPlan.items`."""
ROW, BEGIN, END, SHIFT, PARTIAL = range(5)
"""Columns of `StepPlan.entries`."""


@dataclass(frozen=True)
class StepPlan:
    """The plan of one step, the same for all layers. Rows are new tokens, in the order of the work.

    Letters: T rows, I items, E entries, K shifts. An item is a chunk of one node; all rows that see it share its
    tokens, which are read once. Chunk boundaries are multiples of the cache's chunk size in the node, so they depend
    on the node alone, and items are ordered by node and chunk.

    | field | shape, dtype | |
    |---|---|---|
    | slots | [T] int64 | where each row's K and V are written |
    | positions | [T] int32 | position of each row in its branch |
    | items | [I, 6] int32 | page_begin, offset, length, position, entry_begin, entry_end |
    | pages | [*] int32 | page ids of all items; an item has room for a whole chunk, -1 where nothing is written yet |
    | entries | [E, 5] int32 | row, begin, end, shift_index, partial |
    | row_ptr | [T + 1] int32 | partials of row r are row_ptr[r] .. row_ptr[r + 1] |
    | shifts | [K] int32 | distinct position shifts of linked segments; shifts[0] == 0 |
    | fresh | no tensor | rows of each branch where all are new, so that the step sees its own rows alone; else None |

    The tokens of an item start at in-page `offset` of pages[page_begin] and run over consecutive pages; `position` is
    the position of its first token for its writer (a reader adds the entry's shift). Row `row` sees item tokens
    [begin, end), its own included; causality among new tokens lies in `end`. `partial` is row_ptr[row] plus the rank
    of the entry in the row's context order.

    On the CPU the tensors are views of the planner's buffers: the next `TreeCache.plan` may update them in place.
    `fresh` is None also for one row a branch. A plan may have room for more than it holds: then the rest is padding,
    as :class:`PlanBuffers` makes it.
    """

    slots: torch.Tensor
    positions: torch.Tensor
    items: torch.Tensor
    pages: torch.Tensor
    entries: torch.Tensor
    row_ptr: torch.Tensor
    shifts: torch.Tensor
    fresh: tuple[int, ...] | None = field(default=None, kw_only=True)

    def attention_args(self) -> dict[str, torch.Tensor]:
        """The keyword arguments of `tree_attention` that come from the plan."""
        return {
            "items": self.items,
            "pages": self.pages,
            "entries": self.entries,
            "row_ptr": self.row_ptr,
            "positions": self.positions,
            "shifts": self.shifts,
        }

    def to(self, device: torch.device | str) -> StepPlan:
        """The plan with its tensors on `device`; itself where they are there already."""
        if self.slots.device == torch.device(device):
            return self
        moved = {name: tensor.to(device) for name, tensor in self.attention_args().items()}
        return StepPlan(slots=self.slots.to(device), **moved, fresh=self.fresh)
