"""FlexAttention on a packed batch (arXiv 2412.05496): blocks that no token sees are never touched."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from asyncthink.train.packing import Limits

BLOCK = 128


def block_mask(limits: Limits, block: int = BLOCK) -> BlockMask:
    """``limits`` as FlexAttention's blocks [block, block]: those partly visible, and those completely visible.

    No [T, T] mask is made.
    """
    T = limits.own.shape[0]
    blocks = -(-T // block)
    # FlexAttention needs whole blocks: padding tokens attend to nothing.
    padding = (0, blocks * block - T)
    q = torch.arange(blocks * block, device=limits.own.device)
    own = functional.pad(limits.own, padding, value=blocks * block)
    seen = tuple((functional.pad(first, padding), functional.pad(last, padding)) for first, last in limits.seen)
    padded = Limits(own, seen)
    first = torch.arange(0, blocks * block, block, device=q.device)
    last = first + block - 1
    own, token = own[:, None], q[:, None]
    some = (own <= last) & (token >= torch.maximum(own, first))
    whole = (own <= first) & (token >= last) | (token >= T)
    for begin, end in seen:
        some |= torch.maximum(begin[:, None], first) < torch.minimum(end[:, None], last + 1)
        whole |= (begin[:, None] <= first) & (end[:, None] > last)
    some_blocks = some.view(blocks, block, blocks).any(1)
    whole_blocks = whole.view(blocks, block, blocks).all(1) & some_blocks

    def sees(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return padded.sees(q, k)

    return BlockMask.from_kv_blocks(
        *_listed(some_blocks & ~whole_blocks),
        *_listed(whole_blocks),
        BLOCK_SIZE=block,
        mask_mod=sees,
        seq_lengths=(T, T),
    )


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """blocks [n, n] bool -> (count per row [1,1,n], block indices per row, visible ones first [1,1,n,n]), int32."""
    counts = blocks.sum(1, dtype=torch.int32)
    order = blocks.to(torch.int8).argsort(dim=1, descending=True, stable=True).to(torch.int32)
    return counts[None, None], order[None, None]


@functools.cache
def _compiled() -> Callable[..., Tensor]:
    compiled: Callable[..., Tensor] = torch.compile(flex_attention)
    return compiled


def flex(
    query: Tensor, key: Tensor, value: Tensor, blocks: BlockMask, scale: float, softcap: float | None = None
) -> Tensor:
    """query [1,Hq,T,D], key [1,H,T,D], value [1,H,T,Dv] -> [1,Hq,T,Dv].

    Compiled on a GPU. On a CPU it is eager and has no gradients: tests compare with it.
    """
    attention: Any = _compiled() if query.is_cuda else flex_attention
    cap = None if softcap is None else _cap(softcap)
    out: Tensor = attention(query, key, value, score_mod=cap, block_mask=blocks, scale=scale, enable_gqa=True)
    return out


@functools.cache
def _cap(softcap: float) -> Callable[..., Tensor]:
    def capped(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    return capped
