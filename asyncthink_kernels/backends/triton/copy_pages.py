"""copy_pages in Triton: every row of every page in all layers, K and V in one launch.

The limit is 2 (D + Dv) H S n L itemsize bytes over the memory's bandwidth. Rows of all pages are one sequence, so small
pages fill a program as large ones do.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from asyncthink_kernels import _values
from asyncthink_kernels.backends.triton._launch import Variant, architecture
from asyncthink_kernels.backends.triton._rows import HEAD_DIMS, bits, blocks, grid, served, strides, unit, warps

_INTEGERS = ["pages"] + [f"{x}_{axis}_stride" for x in "kv" for axis in ("layer", "page", "slot", "head")]


@triton.jit(do_not_specialize=_INTEGERS)
def _copy_pages(
    k_ptr, v_ptr, src_ptr, dst_ptr, pages: tl.int64,
    k_layer_stride: tl.int64, k_page_stride: tl.int64, k_slot_stride: tl.int64, k_head_stride: tl.int64,
    v_layer_stride: tl.int64, v_page_stride: tl.int64, v_slot_stride: tl.int64, v_head_stride: tl.int64,
    UNIT: tl.constexpr, PAGE: tl.constexpr, H: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
    BD: tl.constexpr, BDV: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Rows (page i, slot, head) [program_id(0) * ROWS, ...) of layer program_id(1) from page src[i] to page dst[i].

    Strides are in UNIT elements.
    """
    layer = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    i, offset, head = row // (PAGE * H), row // H % PAGE, row % H
    src = tl.load(src_ptr + i, mask=i < pages, other=0)
    dst = tl.load(dst_ptr + i, mask=i < pages, other=0)
    dim, v_dim = tl.arange(0, BD)[None, :], tl.arange(0, BDV)[None, :]
    there = (i < pages)[:, None]
    in_k, in_v = there & (dim < D), there & (v_dim < DV)

    k_at = k_ptr + (layer * k_layer_stride + offset * k_slot_stride + head * k_head_stride)[:, None] * UNIT + dim
    v_at = v_ptr + (layer * v_layer_stride + offset * v_slot_stride + head * v_head_stride)[:, None] * UNIT + v_dim
    k = tl.load(k_at + (src * k_page_stride)[:, None] * UNIT, mask=in_k)
    v = tl.load(v_at + (src * v_page_stride)[:, None] * UNIT, mask=in_v)
    tl.store(k_at + (dst * k_page_stride)[:, None] * UNIT, k, mask=in_k)
    tl.store(v_at + (dst * v_page_stride)[:, None] * UNIT, v, mask=in_v)


def copy_pages(k_caches: Tensor, v_caches: Tensor, src: Tensor, dst: Tensor) -> None:
    served("copy_pages", "k_caches", k_caches)
    L, P, S, H, D = k_caches.shape
    if _values.readable(src):
        _values.slots("copy_pages", "src", src, P)
        _values.slots("copy_pages", "dst", dst, P, distinct=True, apart_from=("src", src))
    if src.shape[0] == 0 or k_caches.numel() + v_caches.numel() == 0:
        return
    step = unit(k_caches, v_caches)
    constants = _constants(k_caches.element_size(), step, S, H, D, v_caches.shape[4])
    with torch.cuda.device_of(k_caches):
        _copy_pages[grid(src.shape[0] * S * H, constants, L)](
            *bits(k_caches, v_caches), src, dst, src.shape[0], *strides(k_caches, step), *strides(v_caches, step),
            **constants, num_warps=warps(architecture(k_caches)), num_stages=1,
        )  # fmt: skip


def variants(arch: str) -> list[Variant]:
    """What is launched for 16- and 32-bit caches of 8 heads, pages of 16 and strides that are multiples of 16."""
    return [
        Variant(
            name=f"copy_pages-{8 * itemsize}bit-d{D}",
            kernel=_copy_pages,
            types={
                **dict.fromkeys(("k_ptr", "v_ptr"), f"*i{8 * itemsize}"),
                **dict.fromkeys(("src_ptr", "dst_ptr"), "*i64"),
                **dict.fromkeys(_INTEGERS, "i64"),
            },
            constants=_constants(itemsize, 16, 16, 8, D, D),
            aligned=frozenset(("k_ptr", "v_ptr", "src_ptr", "dst_ptr")),
            num_warps=warps(arch),
            num_stages=1,
        )
        for itemsize in (2, 4)
        for D in HEAD_DIMS
    ]


def _constants(itemsize: int, unit: int, S: int, H: int, D: int, DV: int) -> dict[str, int]:
    return {"UNIT": unit, "PAGE": S, "H": H, "D": D, "DV": DV, **blocks(D, DV, itemsize)}
