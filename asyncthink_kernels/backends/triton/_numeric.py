"""Arithmetic that Triton's interpreter (3.7) gets wrong, written so that it is right there too."""

from __future__ import annotations

import triton
import triton.language as tl

from asyncthink_kernels.backends.triton._launch import INTERPRETED

_INTERPRETED = tl.constexpr(INTERPRETED)


@triton.jit
def dot(a, b, acc):
    """a @ b + acc with float32 sums (acc may be None); float32 factors are not rounded to TF32."""
    if _INTERPRETED:  # it multiplies the bits of bfloat16 as if they were integers
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, acc, input_precision="ieee")


@triton.jit
def narrow(x, dtype: tl.constexpr):
    """Float32 ``x`` rounded to the nearest of ``dtype``, ties to even."""
    if _INTERPRETED and dtype == tl.bfloat16:  # it cuts the last bits off
        bits = x.to(tl.uint32, bitcast=True)
        bits += 0x7FFF + ((bits >> 16) & 1)
        x = tl.where(x == x, (bits & 0xFFFF0000).to(tl.float32, bitcast=True), x)
    return x.to(dtype)
