"""What our ops are compared with: what one would write in plain torch, and whom `--peers` may name.

Peers of one op take the same problem. Those of the ops on the cache get what our op gets; tree attention and paged
attention have a record of their own, since their peers read K and V in other layouts, too.

Shapes: B branches or sequences, P prefix tokens or pages, N tokens, L layers or the longest sequence, M pages of the
longest, S page_size, H kv heads, G query heads of each, D head_dim, R = D / 2 rotary pairs, n states or pages.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from peers_sample import torch_draw, transformers_processors


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


def append_index_copy(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
    k_cache.flatten(0, 1).index_copy_(0, slots, k)
    v_cache.flatten(0, 1).index_copy_(0, slots, v)


def append_index_put(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
    k_cache.flatten(0, 1)[slots] = k
    v_cache.flatten(0, 1)[slots] = v


@dataclass(frozen=True)
class Sequences:
    """One query of each of B sequences, K and V both in pages and dense, as a cache without pages holds them.

    ``mask`` is None where all are of one length.
    """

    q: Tensor  # [B, H * G, D]
    k_cache: Tensor  # [P, S, H, D]
    v_cache: Tensor  # [P, S, H, D]
    tables: Tensor  # [B, M] int32; ids beyond a length name some page
    lengths: Tensor  # [B] int32
    k: Tensor  # [B, H, L, D]
    v: Tensor  # [B, H, L, D]
    mask: Tensor | None  # [B, 1, 1, L], added to logits


def gather_sdpa(x: Sequences) -> Tensor:
    """The pages of all sequences gathered to the longest one's length, then torch's attention."""
    k, v = (cache[x.tables].flatten(1, 2).transpose(1, 2) for cache in (x.k_cache, x.v_cache))
    return _grouped(x.q, k, v, x.mask)


def dense_sdpa(x: Sequences) -> Tensor:
    """Torch's attention over K and V that lie there padded and without pages: nothing is gathered."""
    return _grouped(x.q, x.k, x.v, x.mask)


def _grouped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """The G query heads of a kv head as G rows: on a CPU many times faster than `enable_gqa`."""
    rows = q.view(q.shape[0], k.shape[1], -1, q.shape[-1])
    return scaled_dot_product_attention(rows, k, v, attn_mask=mask).view_as(q)


def softmax_sum(out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    """out [n, N, heads, D], lse [n, N, heads]: states weighted by the softmax of their LSEs."""
    weight = torch.softmax(lse, 0).unsqueeze(-1)
    return (weight * out).sum(0).to(out.dtype), torch.logsumexp(lse, 0)


def compiled_sum(out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    """The same, its loops fused by torch.compile."""
    return _compiled()(out, lse)


@functools.cache
def _compiled() -> Callable[..., Any]:
    return torch.compile(softmax_sum, dynamic=True)


def join_all_layers(k: Tensor, v: Tensor, src: Tensor, dst: Tensor, cos: Tensor, sin: Tensor) -> None:
    """k, v [L, P, S, H, D], slots [N], cos, sin [L, R]: gather, rotate, scatter, each once for all layers."""
    k, v = k.flatten(1, 2), v.flatten(1, 2)
    k[:, dst] = _turned(k[:, src], cos[:, None, None], sin[:, None, None])
    v[:, dst] = v[:, src]


def join_layer_by_layer(k: Tensor, v: Tensor, src: Tensor, dst: Tensor, cos: Tensor, sin: Tensor) -> None:
    """The same a layer at a time: what is gathered stays in the cache."""
    for layer in range(k.shape[0]):
        k_slots, v_slots = k[layer].flatten(0, 1), v[layer].flatten(0, 1)
        k_slots[dst] = _turned(k_slots[src], cos[layer], sin[layer])
        v_slots[dst] = v_slots[src]


def _turned(k: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = k.float().chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(k.dtype)


def pages_index_copy(k: Tensor, v: Tensor, src: Tensor, dst: Tensor) -> None:
    """k, v [L, P, S, H, D], page ids [n]."""
    for cache in (k, v):
        cache.index_copy_(1, dst, cache.index_select(1, src))


def pages_index_put(k: Tensor, v: Tensor, src: Tensor, dst: Tensor) -> None:
    for cache in (k, v):
        cache[:, dst] = cache[:, src]


#: By op, named as in the tables.
PEERS: dict[str, dict[str, Callable[..., Any]]] = {
    "append_kv": {"index_copy": append_index_copy, "index_put": append_index_put},
    "tree_attention": {"sdpa": sdpa, "sdpa grouped": sdpa_grouped, "prefix once": prefix_once},
    "paged_attention": {"gather + sdpa": gather_sdpa, "dense sdpa": dense_sdpa},
    "merge_states": {"softmax + sum": softmax_sum, "compiled": compiled_sum},
    "join_append": {"all layers": join_all_layers, "layer by layer": join_layer_by_layer},
    "sample": {"transformers": transformers_processors, "torch": torch_draw},
    "copy_pages": {"index_copy": pages_index_copy, "index_put": pages_index_put},
}
#: Whole engines, by the bench that runs them.
ENGINES = {
    "generation": ("transformers", "llama.cpp"),
    "fork_join": ("llama.cpp",),
    "continuous": ("continuous batching",),
}
#: Peers that no CPU runs, with their ops; `bash bench/gpu.sh` compares with them.
GPU_ONLY = {"flashinfer": ("tree_attention", "paged_attention")}

#: Further peers of bench_tree_grid.py.
GRID = ("flex",)


def missing(name: str) -> str | None:
    """Why a peer cannot take part on this machine; None where it can."""
    if name in GPU_ONLY:
        installed = importlib.util.find_spec(name) is not None
        return f"{'installed' if installed else 'not installed'}; runs on a GPU only, see bench/gpu.sh"
    if name == "llama.cpp" and not (importlib.util.find_spec("xllamacpp") and importlib.util.find_spec("gguf")):
        return 'not installed: pip install -e ".[peers]"'
    if name == "compiled" and shutil.which(os.environ.get("CXX", "c++")) is None:
        return "no C++ compiler"
    return None


def known() -> list[str]:
    """Every name that `--peers` may hold."""
    everyone = [*PEERS.values(), *ENGINES.values(), GPU_ONLY, GRID]
    return list(dict.fromkeys(name for each in everyone for name in each))


def chosen(text: str) -> list[str]:
    """The names in the value of `--peers`.

    >>> chosen("index_copy, prefix once")
    ['index_copy', 'prefix once']

    Raises ValueError for a name that is no peer in any bench.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in known():
            raise ValueError(f"--peers: expected names out of {', '.join(known())}, got {name!r}")
    return names


def entrants(op: str, only: Sequence[str] | None) -> tuple[Mapping[str, Callable[..., Any]], str]:
    """Who runs against ``op``, those named by ``only`` if it is given, and a line for the table about who does not."""
    names, note = _present([*PEERS[op], *(name for name, ops in GPU_ONLY.items() if op in ops)], only)
    return {name: PEERS[op][name] for name in names}, note


def engines(bench: str, only: Sequence[str] | None) -> tuple[list[str], str]:
    """The same for the whole engines of a bench: their names."""
    return _present(ENGINES[bench], only)


def _present(everyone: Sequence[str], only: Sequence[str] | None) -> tuple[list[str], str]:
    asked = [name for name in everyone if only is None or name in only]
    absent = {name: reason for name in asked if (reason := missing(name)) is not None}
    absent |= {name: "not asked for" for name in everyone if name not in asked}
    parts = [f"{name} ({reason})" for name, reason in absent.items()]
    return [name for name in asked if name not in absent], f"Not compared with: {', '.join(parts)}." if parts else ""
