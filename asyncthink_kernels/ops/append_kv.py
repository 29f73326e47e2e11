"""append_kv: K and V of new tokens into the paged cache."""

from __future__ import annotations

from torch import Tensor

from asyncthink_kernels import dispatch
from asyncthink_kernels._checks import FLOATS, INT64, Checks, no_grad
from asyncthink_kernels.ops._library import register


def append_kv(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
    """Write K and V of T new tokens into their slots of one layer's cache, in place.

    ``k_cache[slots[t] // S, slots[t] % S] = k[t]``, and the same for V; a token of slot -1 is padding, not written.

    Args:
        k: [T, H, D] keys, rotary embedding applied. float32, bfloat16, float16 (float64: reference backend only).
        v: [T, H, Dv] values, dtype of ``k``.
        k_cache: [P, S, H, D], dtype of ``k``; written in place.
        v_cache: [P, S, H, Dv], dtype of ``k``; written in place.
        slots: [T] int64, contiguous: page * S + offset of each token, all different, or -1.

    The last dimension of every tensor is contiguous; other strides are free.

    Raises:
        ValueError: a shape, dtype, device or stride that does not fit, a slot out of range or named twice; the cache
            is untouched then. On a GPU slots are read only under ``ASYNCTHINK_CHECK=1``.

    Source: the paged KV cache of vLLM (arXiv 2309.06180, section 4.1).

    >>> import torch
    >>> from asyncthink_kernels import append_kv
    >>> k_cache, v_cache = torch.zeros(4, 2, 1, 8), torch.zeros(4, 2, 1, 8)
    >>> append_kv(torch.ones(1, 1, 8), torch.ones(1, 1, 8), k_cache, v_cache, torch.tensor([5]))
    >>> k_cache[2, 1, 0, 0].item()
    1.0
    """
    no_grad("append_kv", k=k, v=v, k_cache=k_cache, v_cache=v_cache)
    _op(k, v, k_cache, v_cache, slots)


def _check(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
    check = Checks("append_kv", k.device)
    check.tensor("k", k, ("T", "H", "D"), FLOATS)
    check.tensor("v", v, ("T", "H", "Dv"), (k.dtype,))
    check.tensor("k_cache", k_cache, ("P", "S", "H", "D"), (k.dtype,))
    check.tensor("v_cache", v_cache, ("P", "S", "H", "Dv"), (k.dtype,))
    check.tensor("slots", slots, ("T",), INT64, dense=True)


def _run(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
    _check(k, v, k_cache, v_cache, slots)
    dispatch.find("append_kv", k.device.type)(k, v, k_cache, v_cache, slots)


_op = register(
    "append_kv(Tensor k, Tensor v, Tensor(a!) k_cache, Tensor(b!) v_cache, Tensor slots) -> ()", _run, _check
)
