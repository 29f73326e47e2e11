"""Torch's own attention on our pages: SDPA on gathered K and V, FlexAttention on packed unique K and V."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

from asyncthink_kernels.cache.plan import BEGIN, END, ENTRY_BEGIN, ENTRY_END, LENGTH, OFFSET, PAGE_BEGIN, ROW

from .contestant import Contestant
from .problem import Problem, equal_runs

GATHERED = 1 << 30  # bytes of K, and as many of V, that SDPA's copies may take at once


class Sdpa(Contestant):
    """scaled_dot_product_attention reads no pages, so each call gathers first. Rows of equal length go together, the
    G query heads of a kv head as G query rows."""

    name = "torch SDPA (gathered)"
    peer = "sdpa"

    def plan(self) -> None:
        """Which slots each batch gathers."""
        x = self.problem
        token = x.cell.kv_heads * x.cell.head_dim * x.dtype.itemsize
        batches = equal_runs([len(slots) for slots in x.contexts], GATHERED // token)
        self.batches = [
            (torch.tensor(rows, device=x.device), torch.stack([x.contexts[row] for row in rows]).to(x.device))
            for rows in batches
        ]

    def run(self) -> Tensor:
        x = self.problem
        H, D = x.k_cache.shape[2:]
        out = torch.empty_like(x.q)
        for rows, slots in self.batches:
            k, v = (cache.view(-1, H, D)[slots].transpose(1, 2) for cache in (x.k_cache, x.v_cache))
            attended = scaled_dot_product_attention(x.q[rows].view(len(rows), H, -1, D), k, v)
            out[rows] = attended.reshape(len(rows), -1, D)
        return out


class Flex(Contestant):
    """FlexAttention over every unique token once, packed [1, H, N, D] beforehand: its mask says which row sees which.

    Its layout costs nothing here, though a paged cache would have to be packed for it.
    """

    name = "FlexAttention (packed unique K/V)"
    peer = "flex"

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem)
        plan = problem.plan
        rows, size = problem.cell.tree.rows, problem.cell.page_size
        items, entries, pages = plan.items.cpu(), plan.entries.cpu(), plan.pages.cpu().long()
        slots, item_of, place_of = [], [], []
        limit = torch.zeros(rows, len(items), dtype=torch.int32)
        for index, item in enumerate(items.tolist()):
            place = torch.arange(item[LENGTH])
            at = item[OFFSET] + place
            slots.append(pages[item[PAGE_BEGIN] + at // size] * size + at % size)
            item_of.append(torch.full_like(place, index))
            place_of.append(place)
            mine = entries[item[ENTRY_BEGIN] : item[ENTRY_END]]
            if mine[:, BEGIN].any():
                raise ValueError("FlexAttention's mask here takes rows that see an item from its first token on")
            limit[mine[:, ROW].long(), index] = mine[:, END]
        self.visible = visibility(
            *(each.to(problem.device) for each in (torch.cat(item_of), torch.cat(place_of), limit))
        )
        H, D = problem.k_cache.shape[2:]
        unique = torch.cat(slots).to(problem.device)
        self.k, self.v = (
            cache.view(-1, H, D)[unique].transpose(0, 1).contiguous()[None]
            for cache in (problem.k_cache, problem.v_cache)
        )
        self.q = problem.q.transpose(0, 1).contiguous()[None]
        self.attend: Callable[..., Tensor] = flex_attention
        if problem.device.type == "cuda":
            # One compilation a shape: with unknown sizes it would not use its kernel for few rows. What other shapes
            # compiled is forgotten, or torch would soon give up compiling.
            torch._dynamo.reset()
            self.attend = torch.compile(flex_attention, dynamic=False, fullgraph=True)

    def plan(self) -> None:
        self.mask: BlockMask = create_block_mask(
            self.visible, None, None, self.q.shape[2], self.k.shape[2], device=str(self.problem.device)
        )

    def run(self) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on a CPU it warns that it is not compiled
            out = self.attend(self.q, self.k, self.v, block_mask=self.mask, enable_gqa=True)
        return out[0].transpose(0, 1)


def visibility(item_of: Tensor, place_of: Tensor, limit: Tensor) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """The mask: a row sees the tokens of an item below its limit there. `item_of`, `place_of` [N], `limit` [T, I]."""

    def visible(batch: Tensor, head: Tensor, row: Tensor, token: Tensor) -> Tensor:
        return place_of[token] < limit[row, item_of[token]]

    return visible
