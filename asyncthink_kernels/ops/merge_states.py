"""merge_states: partial attention results over disjoint sets of keys into one."""

from __future__ import annotations

import torch
from torch import Tensor

from asyncthink_kernels import dispatch
from asyncthink_kernels._checks import FLOATS, Checks, accumulate_dtype, no_grad
from asyncthink_kernels.ops._library import register


def merge_states(out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    """Merge n partial attention outputs over disjoint keys: ``lse' = log sum_i exp(lse_i)``,
    ``out' = sum_i exp(lse_i - lse') out_i``.

    A state with LSE -inf (it saw nothing) counts for nothing, even if it holds NaN; where all n are -inf the result is
    output 0, LSE -inf. An LSE of +inf or NaN belongs to no softmax over finite logits. That state has gone wrong: the
    merged output and LSE of its row and head are NaN, whatever the other states hold, and no others are.

    Args:
        out: [n, T, H, Dv], n >= 1. float32, bfloat16, float16 (float64: reference backend only); last dimension
            contiguous, other strides free.
        lse: [n, T, H] float32 (float64 with float64 ``out``), natural log, contiguous.

    Returns:
        out [T, H, Dv] in the dtype of ``out`` and lse [T, H] in that of ``lse``.

    Raises:
        ValueError: a shape, dtype, device or stride that does not fit.

    Source: FlashInfer's attention states (arXiv 2501.01005, section 2.2).

    >>> import torch
    >>> from asyncthink_kernels import merge_states
    >>> states = torch.tensor([1.0, 3.0]).view(2, 1, 1, 1)
    >>> out, lse = merge_states(states, torch.zeros(2, 1, 1))
    >>> round(out.item(), 6), round(lse.exp().item(), 6)
    (2.0, 2.0)
    """
    no_grad("merge_states", out=out, lse=lse)
    merged: tuple[Tensor, Tensor] = _op(out, lse)
    return merged


def _outputs(out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    """Check everything; allocate the merged out and lse."""
    check = Checks("merge_states", out.device)
    check.tensor("out", out, ("n", "T", "H", "Dv"), FLOATS)
    check.tensor("lse", lse, ("n", "T", "H"), (accumulate_dtype(out.dtype),), dense=True)
    check.that(out.shape[0] >= 1, "out must hold at least one state, got n=0")
    return torch.empty(out.shape[1:], dtype=out.dtype, device=out.device), torch.empty_like(lse[0])


def _run(out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    merged_out, merged_lse = _outputs(out, lse)
    dispatch.find("merge_states", out.device.type)(out, lse, merged_out, merged_lse)
    return merged_out, merged_lse


_op = register("merge_states(Tensor out, Tensor lse) -> (Tensor, Tensor)", _run, _outputs)
