"""The arguments of the ops with many, one record each: what an op hands to its backends.

The op, its torch.library schema, its fake kernel, every backend and the native bindings share the record. A backend
reads fields by name, and gets the outputs that it fills beside it: ``tree_attention(args, out, lse)``. The order of the
fields is that of the op's schema.

Letters: T or B rows, Hq query heads, H kv heads, D and Dv head_dim of K and V, P pages, S page_size, I items,
E entries, N page ids, K shifts, R rotated pairs, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class TreeAttention(NamedTuple):
    """:func:`~asyncthink_kernels.tree_attention`; the plan is given by its tensors, whose values are checked."""

    q: Tensor  # [T, Hq, D]
    k_cache: Tensor  # [P, S, H, D]
    v_cache: Tensor  # [P, S, H, Dv]
    items: Tensor  # [I, 6] int32
    pages: Tensor  # [N] int32
    entries: Tensor  # [E, 5] int32
    row_ptr: Tensor  # [T + 1] int32
    positions: Tensor  # [T] int32
    shifts: Tensor  # [K] int32
    scale: float | None = None
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None  # [Hq]
    cos: Tensor | None = None  # [K, R]
    sin: Tensor | None = None  # [K, R]
    interleaved: bool = False

    @property
    def logit_scale(self) -> float:
        """``scale``, by default D ** -0.5."""
        return self.q.shape[2] ** -0.5 if self.scale is None else self.scale


class PagedAttention(NamedTuple):
    """:func:`~asyncthink_kernels.paged_attention`."""

    q: Tensor  # [B, Hq, D]
    k_cache: Tensor  # [P, S, H, D]
    v_cache: Tensor  # [P, S, H, Dv]
    block_tables: Tensor  # [B, M] int32
    seq_lens: Tensor  # [B] int32
    scale: float | None = None
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None  # [Hq]
    chunk: int = 512

    @property
    def logit_scale(self) -> float:
        """``scale``, by default D ** -0.5."""
        return self.q.shape[2] ** -0.5 if self.scale is None else self.scale


class Sample(NamedTuple):
    """:func:`~asyncthink_kernels.sample`."""

    logits: Tensor  # [N, V]
    seeds: Tensor  # [N] int64
    agents: Tensor  # [N] int64
    positions: Tensor  # [N] int64
    temperature: Tensor  # [N] float32
    top_k: Tensor  # [N] int32
    top_p: Tensor  # [N] float32
    min_p: Tensor  # [N] float32
