"""What the ops that move rows of K and V share: their bits, how many rows a program takes, how many programs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from asyncthink_kernels.tuning import power_of_two

#: Bytes of K and V a program moves: four 16-byte words a lane, all under way before one is stored. Bandwidth needs
#: bandwidth x latency bytes under way, 2 to 3 MB on an H100 (3.35 TB/s x 0.7 us), or 18 KB an SM: three programs, of
#: the 16 that fit. Larger ones would leave SMs idle in decode, where a token has 4 KB a layer (8 heads of 128,
#: bfloat16); smaller ones would have less under way in each warp.
BYTES = 8 << 10

#: Of the variants that are compiled ahead of time.
HEAD_DIMS = (64, 128, 256)

_BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}


def served(op: str, name: str, tensor: Tensor) -> None:
    """ValueError unless the kernels serve the dtype of ``tensor``."""
    if tensor.dtype not in _BITS:
        raise ValueError(f"{op}: {name} must be float32, bfloat16 or float16 for Triton, got {tensor.dtype}")


def bits(*tensors: Tensor) -> Iterator[Tensor]:
    """The same memory as integers: what is not computed with is moved as it is, NaN or not."""
    return (tensor.view(_BITS[tensor.dtype]) for tensor in tensors)


def unit(*tensors: Tensor) -> int:
    """The power of two, at most 16, that divides every stride in elements, but the last dimension's, which is 1.

    Kernels take strides in this unit, so that a compiler sees what it may load at once: it knows of an argument only
    whether 16 divides it, while 16 bytes are 8 or 4 elements.
    """
    dims = [dim for each in tensors for dim in zip(each.shape[:-1], each.stride()[:-1], strict=True)]
    return math.gcd(16, *(stride for size, stride in dims if size > 1))


def strides(tensor: Tensor, unit: int) -> list[int]:
    """Of all dimensions but the last, in units."""
    return [step // unit for step in tensor.stride()[:-1]]


def warps(arch: str) -> int:
    """128 lanes: 4 warps, or 2 wavefronts of 64."""
    return 2 if arch.startswith("gfx9") else 4


def blocks(D: int, DV: int, itemsize: int, total: int = BYTES) -> dict[str, int]:
    """BD and BDV, powers of two that hold a row of K and of V, and ROWS, how many of each are about ``total`` bytes.

    Sizes of the model alone decide, not the number of tokens: a tile that followed the batch would be compiled anew in
    the middle of a run.

    >>> blocks(128, 128, 2), blocks(80, 17, 4)
    ({'BD': 128, 'BDV': 128, 'ROWS': 16}, {'BD': 128, 'BDV': 32, 'ROWS': 8})
    """
    BD, BDV = power_of_two(D), power_of_two(DV)
    return {"BD": BD, "BDV": BDV, "ROWS": max(1, total // power_of_two((BD + BDV) * itemsize))}


def grid(rows: int, constants: Mapping[str, Any], layers: int = 1) -> tuple[int, int]:
    """Programs for ``rows`` rows in each of ``layers`` layers."""
    return -(-rows // int(constants["ROWS"])), layers
