"""join_append in Triton: rows from slot to slot in all layers, keys turned on the way, in one launch.

The limit is 2 (D + Dv) H N L itemsize bytes over the memory's bandwidth; the angles of a layer (8 R bytes) are read
once a program, from L2. A key is read once: pairs that are half a head apart as two runs of R, neighbours as one run of
2R that is split in registers. A program takes 16 KB: a run that is an eighth of them (R = D / 4 of a key) still has a
16-byte word for each of its 128 lanes, and all layers together are programs enough.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from asyncthink_kernels import _values
from asyncthink_kernels.backends.triton._launch import Variant, architecture
from asyncthink_kernels.backends.triton._rows import BYTES, HEAD_DIMS, bits, blocks, grid, served, strides, unit, warps
from asyncthink_kernels.tuning import power_of_two

_TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


@triton.jit
def _rotate(a, b, cos, sin, TYPE: tl.constexpr):
    """Bits of pairs (a, b), turned in float32 and rounded once."""
    x, y = a.to(TYPE, bitcast=True).to(tl.float32), b.to(TYPE, bitcast=True).to(tl.float32)
    turned_x, turned_y = (x * cos - y * sin).to(TYPE), (y * cos + x * sin).to(TYPE)
    return turned_x.to(a.dtype, bitcast=True), turned_y.to(b.dtype, bitcast=True)


_INTEGERS = ["tokens"] + [f"{x}_{axis}_stride" for x in "kv" for axis in ("layer", "page", "slot", "head")]


@triton.jit(do_not_specialize=_INTEGERS)
def _join_append(
    k_ptr, v_ptr, src_ptr, dst_ptr, cos_ptr, sin_ptr, tokens: tl.int64,
    k_layer_stride: tl.int64, k_page_stride: tl.int64, k_slot_stride: tl.int64, k_head_stride: tl.int64,
    v_layer_stride: tl.int64, v_page_stride: tl.int64, v_slot_stride: tl.int64, v_head_stride: tl.int64,
    TYPE: tl.constexpr, UNIT: tl.constexpr, PAGE: tl.constexpr, H: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
    PAIRS: tl.constexpr, INTERLEAVED: tl.constexpr, BPAIRS: tl.constexpr, BREST: tl.constexpr,
    BDV: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Rows (token, head) [program_id(0) * ROWS, ...) of layer program_id(1) from slot src[token] to dst[token].

    Strides are in UNIT elements.
    """
    layer = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    token, head = row // H, row % H
    src = tl.load(src_ptr + token, mask=token < tokens, other=0)
    dst = tl.load(dst_ptr + token, mask=token < tokens, other=0)
    there = (token < tokens)[:, None]
    k_at = k_ptr + (layer * k_layer_stride + head * k_head_stride)[:, None] * UNIT
    k_from = k_at + (src // PAGE * k_page_stride + src % PAGE * k_slot_stride)[:, None] * UNIT
    k_to = k_at + (dst // PAGE * k_page_stride + dst % PAGE * k_slot_stride)[:, None] * UNIT
    v_dim = tl.arange(0, BDV)[None, :]
    v_at = v_ptr + (layer * v_layer_stride + head * v_head_stride)[:, None] * UNIT + v_dim
    in_v = there & (v_dim < DV)

    v = tl.load(v_at + (src // PAGE * v_page_stride + src % PAGE * v_slot_stride)[:, None] * UNIT, mask=in_v)
    rest = 2 * PAIRS + tl.arange(0, BREST)[None, :]
    in_rest = there & (rest < D)
    if 2 * PAIRS < D:
        k = tl.load(k_from + rest, mask=in_rest)
    pair = tl.arange(0, BPAIRS)[None, :]
    cos = tl.load(cos_ptr + layer * PAIRS + pair, mask=pair < PAIRS, other=0.0)
    sin = tl.load(sin_ptr + layer * PAIRS + pair, mask=pair < PAIRS, other=0.0)
    if PAIRS > 0 and INTERLEAVED:
        turning = tl.arange(0, 2 * BPAIRS)[None, :]
        in_turning = there & (turning < 2 * PAIRS)
        both = tl.load(k_from + turning, mask=in_turning)
        a, b = tl.split(tl.reshape(both, [ROWS, BPAIRS, 2]))
        a, b = _rotate(a, b, cos, sin, TYPE)
        tl.store(k_to + turning, tl.reshape(tl.join(a, b), [ROWS, 2 * BPAIRS]), mask=in_turning)
    elif PAIRS > 0:
        in_pair = there & (pair < PAIRS)
        a = tl.load(k_from + pair, mask=in_pair)
        b = tl.load(k_from + PAIRS + pair, mask=in_pair)
        a, b = _rotate(a, b, cos, sin, TYPE)
        tl.store(k_to + pair, a, mask=in_pair)
        tl.store(k_to + PAIRS + pair, b, mask=in_pair)
    if 2 * PAIRS < D:
        tl.store(k_to + rest, k, mask=in_rest)
    tl.store(v_at + (dst // PAGE * v_page_stride + dst % PAGE * v_slot_stride)[:, None] * UNIT, v, mask=in_v)


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
    served("join_append", "k_caches", k_caches)
    L, P, S, H, D = k_caches.shape
    if _values.readable(src_slots):
        _values.slots("join_append", "src_slots", src_slots, P * S)
        apart_from = ("src_slots", src_slots)
        _values.slots("join_append", "dst_slots", dst_slots, P * S, distinct=True, apart_from=apart_from)
    if src_slots.shape[0] == 0 or k_caches.numel() + v_caches.numel() == 0:
        return
    step = unit(k_caches, v_caches)
    constants = _constants(k_caches.dtype, step, S, H, D, v_caches.shape[4], cos.shape[1], interleaved)
    with torch.cuda.device_of(k_caches):
        _join_append[grid(src_slots.shape[0] * H, constants, L)](
            *bits(k_caches, v_caches), src_slots, dst_slots, cos, sin, src_slots.shape[0],
            *strides(k_caches, step), *strides(v_caches, step),
            **constants, num_warps=warps(architecture(k_caches)), num_stages=1,
        )  # fmt: skip


def variants(arch: str) -> list[Variant]:
    """What is launched for caches of 8 heads, pages of 16 and strides that are multiples of 16; R is D/2, D/4 and 0."""
    return [
        _variant(arch, dtype, D, R, interleaved)
        for dtype in (torch.float32, torch.bfloat16)
        for D in HEAD_DIMS
        for R, interleaved in ((0, False), (D // 2, False), (D // 4, False), (D // 2, True), (D // 4, True))
    ]


def _variant(arch: str, dtype: torch.dtype, D: int, R: int, interleaved: bool) -> Variant:
    width = 8 * dtype.itemsize
    return Variant(
        name=f"join_append-{width}bit-d{D}-r{R}{'-interleaved' if interleaved else ''}",
        kernel=_join_append,
        types={
            **dict.fromkeys(("k_ptr", "v_ptr"), f"*i{width}"),
            **dict.fromkeys(("src_ptr", "dst_ptr"), "*i64"),
            **dict.fromkeys(("cos_ptr", "sin_ptr"), "*fp32"),
            **dict.fromkeys(_INTEGERS, "i64"),
        },
        constants=_constants(dtype, 16, 16, 8, D, D, R, interleaved),
        aligned=frozenset(("k_ptr", "v_ptr", "src_ptr", "dst_ptr", "cos_ptr", "sin_ptr")),
        num_warps=warps(arch),
        num_stages=1,
    )


def _constants(
    dtype: torch.dtype, unit: int, S: int, H: int, D: int, DV: int, R: int, interleaved: bool
) -> dict[str, Any]:
    tile = blocks(D, DV, dtype.itemsize, 2 * BYTES)
    return {
        "TYPE": _TYPES[dtype],
        "UNIT": unit,
        "PAGE": S,
        "H": H,
        "D": D,
        "DV": DV,
        "PAIRS": R,
        "INTERLEAVED": interleaved,
        "BPAIRS": power_of_two(R),
        "BREST": power_of_two(D - 2 * R),
        "BDV": tile["BDV"],
        "ROWS": tile["ROWS"],
    }
