"""What tree attention is compared with, in torch alone. All of them read the K/V of one `Shared` problem.

Shapes: B branches, P prefix tokens, N tokens of a suffix, H kv heads, G query heads of each, D head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


@dataclass(frozen=True)
class Shared:
    """B branches behind one prefix, in the layout torch likes best: heads outside.

    All suffixes hold the same numbers. So a branch's whole context is one contiguous tensor that exists once, and no
    peer has to pay for a replicated prefix.
    """

    q: Tensor  # [B, H * G, D]
    k: Tensor  # [H, P + N, D]
    v: Tensor  # [H, P + N, D]
    prefix: int

    @property
    def group(self) -> int:
        return self.q.shape[1] // self.k.shape[0]


def sdpa(x: Shared) -> Tensor:
    """Torch's attention, a call a branch, query heads sharing K/V by `enable_gqa`."""
    k, v = x.k[None], x.v[None]
    rows = [scaled_dot_product_attention(q[None, :, None], k, v, enable_gqa=True) for q in x.q]
    return torch.cat(rows).squeeze(2)


def sdpa_grouped(x: Shared) -> Tensor:
    """The same, the G query heads of a kv head packed as G query rows."""
    k, v = x.k[None], x.v[None]
    rows = [scaled_dot_product_attention(q.view(1, -1, x.group, q.shape[-1]), k, v) for q in x.q]
    return torch.cat(rows).view_as(x.q)


def prefix_once(x: Shared) -> Tensor:
    """Prefix attention of all branches' rows at once, suffix attention batched, merged by their LSEs (Hydragen)."""
    B, heads, D = x.q.shape
    H, G = heads // x.group, x.group
    grouped = x.q.view(B, H, G, D)
    packed = grouped.transpose(0, 1).reshape(1, H, B * G, D)
    out, lse = _flash(packed, x.k[None, :, : x.prefix], x.v[None, :, : x.prefix])
    suffix_k, suffix_v = (t[None, :, x.prefix :].expand(B, -1, -1, -1) for t in (x.k, x.v))
    suffix_out, suffix_lse = _flash(grouped, suffix_k, suffix_v)
    out = out.view(H, B, G, D).transpose(0, 1)
    lse = lse.view(H, B, G).transpose(0, 1)
    weight = torch.sigmoid(lse - suffix_lse).unsqueeze(-1)
    return (weight * out + (1 - weight) * suffix_out).to(x.q.dtype).reshape(x.q.shape)


def _flash(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Output and LSE [B, H, rows]; the only CPU attention of torch that returns the LSE."""
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)


#: Named as in the tables.
PEERS = {"sdpa": sdpa, "sdpa grouped": sdpa_grouped, "prefix once": prefix_once}
