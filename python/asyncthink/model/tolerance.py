"""How far logits computed in another way may lie from a model's own, at load.

Letters: V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-3, torch.float16: 3e-2, torch.bfloat16: 8e-2}


def limit(dtype: torch.dtype, one: Tensor, other: Tensor) -> float:
    """The largest relative difference that counts as rounding in this dtype.

    ``one``, ``other`` [V]: logits of the same token behind different contexts. In a 16-bit dtype, rounding may send a
    token to another expert; there the limit is half of their difference, if this is more.
    """
    least = TOLERANCE[dtype]
    if dtype.itemsize != 2:
        return least
    return max(least, 0.5 * float((one - other).norm() / one.norm()))


def difference(got: Tensor, expected: Tensor) -> float:
    """The largest relative difference of a row of logits [*,V]; infinite where one is not finite."""
    if not bool(got.isfinite().all()):
        return float("inf")
    return float(((got - expected).norm(dim=-1) / expected.norm(dim=-1)).max())
