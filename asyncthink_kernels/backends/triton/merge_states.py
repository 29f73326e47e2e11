"""merge_states in Triton: n partial outputs of each row into one.

The limit is (n + 1) T H Dv itemsize bytes over the memory's bandwidth. A program is one warp with one row of one head,
so weights never leave it, and takes 2 KB of states at a time (8 of 128 bfloat16; four 16-byte words a lane): 64 rows of
32 heads are 2,048 programs, 32 of them on an SM have 64 KB under way, and bandwidth needs 18 KB an SM.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from asyncthink_kernels.backends.triton._launch import Variant
from asyncthink_kernels.backends.triton._rows import HEAD_DIMS, served, strides, unit
from asyncthink_kernels.tuning import power_of_two

_BYTES = 2 << 10
_TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


_INTEGERS = ("states", "rows", "state_stride", "row_stride", "head_stride")


@triton.jit(do_not_specialize=_INTEGERS)
def _merge_states(
    out_ptr, lse_ptr, merged_out_ptr, merged_lse_ptr, states: tl.int64, rows: tl.int64,
    state_stride: tl.int64, row_stride: tl.int64, head_stride: tl.int64,
    UNIT: tl.constexpr, H: tl.constexpr, DV: tl.constexpr, BDV: tl.constexpr, STATES: tl.constexpr,
):  # fmt: skip
    """Row (t, head) program_id: softmax over its LSEs, STATES of them at a time, in their order.

    Strides are in UNIT elements.
    """
    row = tl.program_id(0).to(tl.int64)
    dim = tl.arange(0, BDV)
    at = out_ptr + (row // H * row_stride + row % H * head_stride) * UNIT + dim[None, :]
    high = float("-inf")
    total = 0.0
    acc = tl.zeros([BDV], tl.float32)
    for start in tl.range(0, states, STATES):
        i = start + tl.arange(0, STATES).to(tl.int64)
        there = i < states
        lse = tl.load(lse_ptr + i * rows + row, mask=there, other=float("-inf"))
        part = tl.load(at + (i * state_stride)[:, None] * UNIT, mask=there[:, None] & (dim < DV)[None, :], other=0.0)
        new = tl.maximum(high, tl.max(lse, 0))
        safe = tl.where(new == float("-inf"), 0.0, new)  # -inf - -inf would be NaN
        keep = tl.exp(high - safe)
        weight = tl.exp(lse - safe)
        # Zero times NaN is NaN: the values of a state of weight zero are replaced first.
        part = tl.where((lse == float("-inf"))[:, None], 0.0, part.to(tl.float32))
        total = total * keep + tl.sum(weight, 0)
        acc = acc * keep + tl.sum(part * weight[:, None], 0)
        high = new

    nothing = total == 0.0
    total = tl.where(nothing, 1.0, total)
    tl.store(merged_out_ptr + row * DV + dim, (acc / total).to(merged_out_ptr.dtype.element_ty), mask=dim < DV)
    tl.store(merged_lse_ptr + row, tl.where(nothing, float("-inf"), high + tl.log(total)))


def merge_states(out_states: Tensor, lse_states: Tensor, out: Tensor, lse: Tensor) -> None:
    served("merge_states", "out", out_states)
    n, T, H, DV = out_states.shape
    if lse.numel() == 0:
        return
    step = unit(out_states)
    constants = _constants(out_states.element_size(), step, H, DV)
    with torch.cuda.device_of(out_states):
        _merge_states[(T * H,)](
            out_states,
            lse_states,
            out,
            lse,
            n,
            T * H,
            *strides(out_states, step),
            **constants,
            num_warps=1,
            num_stages=1,
        )


def variants(arch: str) -> list[Variant]:
    """What is launched for 32 heads and strides that are multiples of 16."""
    pointers = ("out_ptr", "lse_ptr", "merged_out_ptr", "merged_lse_ptr")
    return [
        Variant(
            name=f"merge_states-{_TYPES[dtype]}-d{D}",
            kernel=_merge_states,
            types={
                **dict(zip(pointers, (f"*{_TYPES[dtype]}", "*fp32") * 2, strict=True)),
                **dict.fromkeys(_INTEGERS, "i64"),
            },
            constants=_constants(dtype.itemsize, 16, 32, D),
            aligned=frozenset(pointers),
            num_warps=1,
            num_stages=1,
        )
        for dtype in _TYPES
        for D in HEAD_DIMS
    ]


def _constants(itemsize: int, unit: int, H: int, DV: int) -> dict[str, int]:
    BDV = power_of_two(DV)
    return {"UNIT": unit, "H": H, "DV": DV, "BDV": BDV, "STATES": max(1, _BYTES // (BDV * itemsize))}
