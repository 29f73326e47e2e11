"""The CUDA C++ kernels: scratch and the caller's stream are handed over; the only user of `_cuda`.

Signatures are those of :mod:`~asyncthink_kernels.backends.reference`. The kernels check sizes, dtypes and strides
themselves and raise ValueError before anything is launched; they allocate nothing and wait for nothing. Index values
are read here under ``ASYNCTHINK_CHECK=1`` (those of a plan never: it was checked when it was made); without it a slot
or page outside the cache traps where a row would be written.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from asyncthink_kernels import _values
from asyncthink_kernels.arguments import PagedAttention, Sample, TreeAttention
from asyncthink_kernels.backends.native import load

#: Head dims (of K and V) up to this have a kernel.
MAX_HEAD_DIM = 256
_OLDEST = (8, 0)  # compute capability: asynchronous copies, bfloat16 products
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_cuda: Any = load("_cuda")


def unavailable_reason(op: str, device: str) -> str | None:
    """None if ``op`` runs on device type ``device``, else one line that says why it does not."""
    emulated = hasattr(_cuda, "emulated")
    if device == "cpu":
        return None if emulated and hasattr(_cuda, op) else "runs on GPUs"
    if emulated:
        return "runs on an emulator, on CPU tensors only"
    if _cuda is None:
        return "_cuda was not built: install again where nvcc is found"
    if not hasattr(_cuda, op):
        return "not written yet"
    reason: str | None = _cuda.unavailable_reason()
    if reason is None and not torch.cuda.is_available():
        return "torch finds no GPU"
    if reason is None and torch.cuda.get_device_capability() < _OLDEST:
        return f"needs compute capability 8.0, got {'.'.join(map(str, torch.cuda.get_device_capability()))}"
    return reason


def note(device: str) -> str:
    """What runs."""
    if device == "cpu":
        return "the kernels' source on an emulator: for tests, far slower than anything else"
    return f"CUDA C++ on {torch.cuda.get_device_name()}; head dims up to {MAX_HEAD_DIM}; unmeasured"


def append_kv(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
    _require_served("append_kv", "k", k)
    if _values.readable(slots):
        P, S = k_cache.shape[:2]
        _values.slots("append_kv", "slots", slots, P * S, padding=True, distinct=True)
    with _on(k) as stream:
        _cuda.append_kv(k, v, k_cache, v_cache, slots, stream)


def join_append(
    k_caches: Tensor,
    v_caches: Tensor,
    src_slots: Tensor,
    dst_slots: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    interleaved: bool,
) -> None:
    _require_served("join_append", "k_caches", k_caches)
    if _values.readable(src_slots):
        P, S = k_caches.shape[1:3]
        apart_from = ("src_slots", src_slots)
        _values.slots("join_append", "src_slots", src_slots, P * S)
        _values.slots("join_append", "dst_slots", dst_slots, P * S, distinct=True, apart_from=apart_from)
    with _on(k_caches) as stream:
        _cuda.join_append(k_caches, v_caches, src_slots, dst_slots, cos, sin, interleaved, stream)


def copy_pages(k_caches: Tensor, v_caches: Tensor, src: Tensor, dst: Tensor) -> None:
    _require_served("copy_pages", "k_caches", k_caches)
    if _values.readable(src):
        P = k_caches.shape[1]
        _values.slots("copy_pages", "src", src, P)
        _values.slots("copy_pages", "dst", dst, P, distinct=True, apart_from=("src", src))
    with _on(k_caches) as stream:
        _cuda.copy_pages(k_caches, v_caches, src, dst, stream)


def merge_states(out_states: Tensor, lse_states: Tensor, out: Tensor, lse: Tensor) -> None:
    _require_served("merge_states", "out", out_states)
    with _on(out_states) as stream:
        _cuda.merge_states(out_states, lse_states, out, lse, stream)


def sample(args: Sample, tokens: Tensor, logprobs: Tensor) -> None:
    _require_served("sample", "logits", args.logits)
    if _values.readable(args.logits):
        _values.drawing("sample", args.temperature, args.top_k, args.top_p, args.min_p)
    with _on(args.logits) as stream:
        _cuda.sample(args, tokens, logprobs, stream)


def tree_attention(args: TreeAttention, out: Tensor, lse: Tensor) -> None:
    """Two launches; the host reads no value."""
    q, E = args.q, args.entries.shape[0]
    _require_heads("tree_attention", q, args.v_cache)
    part_out, part_lse = _partials(E, q, args.v_cache)
    entry_of = torch.empty(E, dtype=torch.int32, device=q.device)
    with _on(q) as stream:
        _cuda.tree_attention(args, out, lse, part_out, part_lse, entry_of, stream)


def paged_attention(args: PagedAttention, out: Tensor, lse: Tensor) -> None:
    """Two launches; the host reads no value unless asked to."""
    q, tables = args.q, args.block_tables
    _require_heads("paged_attention", q, args.v_cache)
    P, S = args.k_cache.shape[:2]
    if _values.readable(q):
        _values.block_tables("paged_attention", tables, args.seq_lens, num_pages=P, page_size=S)
    splits = -(-tables.shape[1] * S // args.chunk)
    part_out, part_lse = _partials(q.shape[0] * splits, q, args.v_cache)
    with _on(q) as stream:
        _cuda.paged_attention(args, out, lse, part_out, part_lse, stream)


@contextlib.contextmanager
def _on(tensor: Tensor) -> Iterator[int]:
    """Makes the tensor's device the current one; gives its current stream. The emulator has none."""
    if tensor.device.type != "cuda":
        yield 0
        return
    with torch.cuda.device(tensor.device):
        yield torch.cuda.current_stream().cuda_stream


def _require_served(op: str, name: str, tensor: Tensor) -> None:
    if tensor.dtype not in _DTYPES:
        raise ValueError(f"{op}: {name} must be float32, bfloat16 or float16 on the cuda backend, got {tensor.dtype}")


def _require_heads(op: str, q: Tensor, v_cache: Tensor) -> None:
    _require_served(op, "q", q)
    D, Dv = q.shape[2], v_cache.shape[3]
    if max(D, Dv) > MAX_HEAD_DIM:
        raise ValueError(f"{op}: head dims must be at most {MAX_HEAD_DIM} on the cuda backend, got D={D}, Dv={Dv}")


def _partials(entries: int, q: Tensor, v_cache: Tensor) -> tuple[Tensor, Tensor]:
    """Room for partial results: outputs [H, E, G, Dv] and LSEs [H, E, G], float32."""
    H, Dv = v_cache.shape[2:]
    parts = torch.empty(H, entries, q.shape[1] // H, Dv, dtype=torch.float32, device=q.device)
    return parts, torch.empty(parts.shape[:3], dtype=torch.float32, device=q.device)
