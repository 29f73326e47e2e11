"""Checks of tensor arguments: every size is bound at its first sight and compared at every later one.

An error names the op, the tensor, what was expected and what came. Only metadata is read here. Values are checked by
the backends, next to the memory they address; those of a plan by :class:`~asyncthink_kernels.plan.TreePlan`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

#: What K, V and queries may be made of. float64 is served by the reference backend alone.
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
INT32 = (torch.int32,)
INT64 = (torch.int64,)


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums over ``dtype``, and of LSE, cos, sin and sinks: float32, for float64 float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class Checks:
    """Checks the arguments of one call of ``op``; ``device`` is where all of them must be."""

    __slots__ = ("device", "op", "sizes")

    def __init__(self, op: str, device: torch.device) -> None:
        self.op = op
        self.device = device
        self.sizes: dict[str, int] = {}

    def tensor(
        self,
        name: str,
        tensor: Tensor,
        dims: Sequence[str | int],
        dtypes: Sequence[torch.dtype],
        *,
        dense: bool = False,
    ) -> None:
        """``dims`` are letters, bound or compared, or numbers. The last dim must be contiguous; all, if ``dense``."""
        shape = tensor.shape
        sizes = self.sizes
        fits = len(shape) == len(dims)
        if fits:
            for dim, size in zip(dims, shape, strict=True):
                if (sizes.setdefault(dim, size) if isinstance(dim, str) else dim) != size:
                    fits = False
        if not fits:
            raise ValueError(f"{self.op}: {name} must have shape {self._expected(dims)}, got {list(shape)}")
        if tensor.dtype not in dtypes:
            names = " or ".join(str(dtype) for dtype in dtypes)
            raise ValueError(f"{self.op}: {name} must be {names}, got {tensor.dtype}")
        if tensor.device != self.device:
            raise ValueError(f"{self.op}: {name} must be on {self.device}, got {tensor.device}")
        if dense:
            if not tensor.is_contiguous():
                raise ValueError(f"{self.op}: {name} must be contiguous, got strides {list(tensor.stride())}")
        elif tensor.stride(-1) != 1 and shape[-1] > 1:
            raise ValueError(
                f"{self.op}: {name} must be contiguous in its last dimension, got strides {list(tensor.stride())}"
            )

    def that(self, fine: bool, message: str) -> None:
        """Raise ``op: message`` unless ``fine``. The message says what is expected and what came."""
        if not fine:
            raise ValueError(f"{self.op}: {message}")

    def _expected(self, dims: Sequence[str | int]) -> str:
        known = (f"{dim}={self.sizes[dim]}" if isinstance(dim, str) and dim in self.sizes else str(dim) for dim in dims)
        return f"[{', '.join(known)}]"


def no_grad(op: str, **tensors: Tensor) -> None:
    """The ops have no backward: refuse to cut a graph silently."""
    if torch.is_grad_enabled():
        for name, tensor in tensors.items():
            if tensor.requires_grad:
                raise ValueError(f"{op}: {name} must not require grad (no backward; use torch.no_grad()), got True")


def attention_options(
    check: Checks, q: Tensor, scale: float | None, window: int | None, softcap: float | None, sinks: Tensor | None
) -> None:
    """What tree and paged attention share: heads that group, options in range, sinks [Hq]."""
    query_heads, kv_heads = check.sizes["Hq"], check.sizes["H"]
    page_size, head_dim = check.sizes["S"], check.sizes["D"]
    check.that(
        min(page_size, head_dim) >= 1, f"k_cache must have S >= 1 and D >= 1, got S={page_size} and D={head_dim}"
    )
    check.that(
        1 <= kv_heads <= query_heads and query_heads % kv_heads == 0,
        f"q must have a multiple, at least one, of the {kv_heads} heads of k_cache, got {query_heads}",
    )
    check.that(scale is None or math.isfinite(scale), f"scale must be finite, got {scale}")
    check.that(window is None or window >= 1, f"window must be at least 1, got {window}")
    check.that(softcap is None or 0 < softcap < math.inf, f"softcap must be positive and finite, got {softcap}")
    if sinks is not None:
        check.tensor("sinks", sinks, ("Hq",), (accumulate_dtype(q.dtype),), dense=True)
