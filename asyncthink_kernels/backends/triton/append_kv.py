"""append_kv in Triton: rows of new tokens to their slots, K and V in one launch.

The limit is 2 (D + Dv) H T itemsize bytes over the memory's bandwidth; in decode that is less than the launch takes, so
nothing is done but to have every byte under way at once: a program loads its rows of K and V, then stores them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from asyncthink_kernels import _values
from asyncthink_kernels.backends.triton._launch import Variant, architecture
from asyncthink_kernels.backends.triton._rows import HEAD_DIMS, bits, blocks, grid, served, strides, unit, warps

_INTEGERS = ["tokens"]
_INTEGERS += [f"{x}_{axis}_stride" for x in "kv" for axis in ("token", "head")]
_INTEGERS += [f"{x}_{axis}_stride" for x in "kv" for axis in ("page", "slot", "cache_head")]


@triton.jit(do_not_specialize=_INTEGERS)
def _append_kv(
    k_ptr, v_ptr, k_cache_ptr, v_cache_ptr, slots_ptr, tokens: tl.int64,
    k_token_stride: tl.int64, k_head_stride: tl.int64, v_token_stride: tl.int64, v_head_stride: tl.int64,
    k_page_stride: tl.int64, k_slot_stride: tl.int64, k_cache_head_stride: tl.int64,
    v_page_stride: tl.int64, v_slot_stride: tl.int64, v_cache_head_stride: tl.int64,
    UNIT: tl.constexpr, PAGE: tl.constexpr, H: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
    BD: tl.constexpr, BDV: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Rows (token, head) [program_id * ROWS, ...) of k [T, H, D] and v [T, H, DV] to the slots of their tokens.

    Strides are in UNIT elements.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    token, head = row // H, row % H
    slot = tl.load(slots_ptr + token, mask=token < tokens, other=-1)
    written = (slot >= 0)[:, None]
    page, offset = slot // PAGE, slot % PAGE
    dim, v_dim = tl.arange(0, BD)[None, :], tl.arange(0, BDV)[None, :]
    in_k, in_v = written & (dim < D), written & (v_dim < DV)

    k = tl.load(k_ptr + (token * k_token_stride + head * k_head_stride)[:, None] * UNIT + dim, mask=in_k)
    v = tl.load(v_ptr + (token * v_token_stride + head * v_head_stride)[:, None] * UNIT + v_dim, mask=in_v)
    k_to = page * k_page_stride + offset * k_slot_stride + head * k_cache_head_stride
    v_to = page * v_page_stride + offset * v_slot_stride + head * v_cache_head_stride
    tl.store(k_cache_ptr + k_to[:, None] * UNIT + dim, k, mask=in_k)
    tl.store(v_cache_ptr + v_to[:, None] * UNIT + v_dim, v, mask=in_v)


def append_kv(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
    served("append_kv", "k", k)
    P, S, H, D = k_cache.shape
    if _values.readable(slots):
        _values.slots("append_kv", "slots", slots, P * S, padding=True, distinct=True)
    if k.numel() + v.numel() == 0:
        return
    step = unit(k, v, k_cache, v_cache)
    constants = _constants(k.element_size(), step, S, H, D, v.shape[2])
    with torch.cuda.device_of(k):
        _append_kv[grid(slots.shape[0] * H, constants)](
            *bits(k, v, k_cache, v_cache), slots, slots.shape[0],
            *strides(k, step), *strides(v, step), *strides(k_cache, step), *strides(v_cache, step),
            **constants, num_warps=warps(architecture(k)), num_stages=1,
        )  # fmt: skip


def variants(arch: str) -> list[Variant]:
    """What is launched for 16- and 32-bit caches of 8 heads, pages of 16 and strides that are multiples of 16."""
    return [
        Variant(
            name=f"append_kv-{8 * itemsize}bit-d{D}",
            kernel=_append_kv,
            types={
                **dict.fromkeys(("k_ptr", "v_ptr", "k_cache_ptr", "v_cache_ptr"), f"*i{8 * itemsize}"),
                "slots_ptr": "*i64",
                **dict.fromkeys(_INTEGERS, "i64"),
            },
            constants=_constants(itemsize, 16, 16, 8, D, D),
            aligned=frozenset(("k_ptr", "v_ptr", "k_cache_ptr", "v_cache_ptr", "slots_ptr")),
            num_warps=warps(arch),
            num_stages=1,
        )
        for itemsize in (2, 4)
        for D in HEAD_DIMS
    ]


def _constants(itemsize: int, unit: int, S: int, H: int, D: int, DV: int) -> dict[str, int]:
    return {"UNIT": unit, "PAGE": S, "H": H, "D": D, "DV": DV, **blocks(D, DV, itemsize)}
