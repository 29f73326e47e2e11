"""What tree_attention and paged_attention prepare alike before a launch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from asyncthink_kernels import tuning
from asyncthink_kernels.backends.triton._launch import Variant, architecture
from asyncthink_kernels.backends.triton._reduce import reduce_rows

#: A program of the reduction adds 8 KiB at a time: 16 bytes for each of 128 lanes, four of them under way.
REDUCE: dict[str, Any] = {"num_warps": 4, "num_stages": 3, "enable_fp_fusion": False}

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Logits:
    """How products q k become logits in base 2: ``scale`` times, or softcap * tanh(scale times)."""

    scale: float
    softcap: float

    @classmethod
    def of(cls, scale: float, softcap: float | None) -> Logits:
        if softcap is None:
            return cls(scale * math.log2(math.e), 0.0)
        return cls(scale / softcap, softcap * math.log2(math.e))


def require_served(op: str, q: Tensor) -> None:
    """float64 has no Triton kernel."""
    if q.dtype not in _DTYPES:
        raise ValueError(f"{op}: q must be float32, bfloat16 or float16 on the triton backend, got {q.dtype}")


def blocks(head_dim: int, v_head_dim: int) -> dict[str, int]:
    """Head dims and the powers of two that hold them."""
    return {
        "D": head_dim,
        "DV": v_head_dim,
        "BD": tuning.power_of_two(head_dim, 16),
        "BDV": tuning.power_of_two(v_head_dim, 16),
    }


def cache_strides(k_cache: Tensor, v_cache: Tensor) -> tuple[int, ...]:
    """Strides of page, slot and head of K, then of V, in elements."""
    return (*k_cache.stride()[:3], *v_cache.stride()[:3])


def tile_for(q: Tensor, v_cache: Tensor, rows: float) -> tuple[tuning.Tile, dict[str, Any]]:
    """The tile for items that ``rows`` rows see in the mean, and how to launch with it."""
    arch = architecture(q)
    tile = tuning.attention_tile(arch, q.element_size(), q.shape[2], v_cache.shape[3], rows)
    return tile, {"num_warps": tile.warps, "num_stages": tile.stages, **options(arch)}


def options(arch: str) -> dict[str, Any]:
    """Compiler options of attention kernels."""
    # All registers that a thread can have: ptxas else spills a few to fit another program on the SM, whose shared
    # memory would not fit.
    return {"enable_fp_fusion": False, **({"maxnreg": 255} if arch.startswith("sm_") else {})}


def partials(entries: int, q: Tensor, v_cache: Tensor) -> tuple[Tensor, Tensor]:
    """Room for partial results: outputs [H, E, G, Dv] and LSEs [H, E, G], float32."""
    shape = (v_cache.shape[2], entries, q.shape[1] // v_cache.shape[2])
    parts = torch.empty((*shape, v_cache.shape[3]), dtype=torch.float32, device=q.device)
    return parts, torch.empty(shape, dtype=torch.float32, device=q.device)


class Specialization(NamedTuple):
    """What ahead-of-time compilation compiles for: sizes, tile, and no option at all or every one."""

    name: str
    arch: str
    dtype: str
    itemsize: int
    head_dim: int
    v_head_dim: int
    tile: tuning.Tile
    everything: bool


def specializations(arch: str) -> Iterator[Specialization]:
    """Every tile that :mod:`~asyncthink_kernels.tuning` returns, for the head dims of today's models."""
    for dtype, itemsize in (("bf16", 2), ("fp16", 2), ("fp32", 4)):
        for sizes in ((64, 64), (128, 128), (192, 128), (256, 256)) if dtype != "fp16" else ((128, 128),):
            for tile in tuning.attention_tiles(arch, itemsize, *sizes):
                for everything in (False, True):
                    shown = f"{dtype}-d{sizes[0]}" + (f"-dv{sizes[1]}" if sizes[0] != sizes[1] else "")
                    name = f"{shown}-m{tile.rows}n{tile.tokens}" + "-options" * everything
                    yield Specialization(name, arch, dtype, itemsize, *sizes, tile, everything)


#: Run-time arguments of a kernel that are multiples of 16 in a cache of a model with 8 kv heads.
ALIGNED_STRIDES = (
    "q_row_stride", "q_head_stride", "k_page_stride", "k_slot_stride", "k_head_stride",
    "v_page_stride", "v_slot_stride", "v_head_stride",
)  # fmt: skip


def reduction_variants(paged: bool) -> list[Variant]:
    """The reduction into bfloat16 and float32, with no option and with every one."""
    return [
        _reduction(paged, dtype, size, everything)
        for dtype in ("bf16", "fp32")
        for size in (64, 128, 256)
        for everything in (False, True)
    ]


def _reduction(paged: bool, dtype: str, size: int, everything: bool) -> Variant:
    indices = dict.fromkeys(("entry_of_ptr", "row_ptr_ptr", "seq_lens_ptr"), "*i32")
    types = {"parts_ptr": "*fp32", "part_lse_ptr": "*fp32", **indices, "out_ptr": f"*{dtype}", "lse_ptr": "*fp32"}
    types |= {"sinks_ptr": "*fp32"} if everything else {}
    numbers = dict.fromkeys(("num_entries", "splits", "window", "chunk"), "i32")
    constants = {"HEADS": 8, "GROUP": 4, "DV": size, "BDV": tuning.power_of_two(size, 16)}
    switches = {"PAGED": paged, "WINDOW": paged and everything, "SINKS": everything}
    return Variant(
        name=f"reduce_rows-{'paged' if paged else 'tree'}-{dtype}-dv{size}" + "-options" * everything,
        kernel=reduce_rows,
        types=types | numbers,
        constants={**constants, "P": tuning.partials_block(size), **switches}
        | ({} if everything else {"sinks_ptr": None}),
        aligned=frozenset(types),
        num_warps=REDUCE["num_warps"],
        num_stages=REDUCE["num_stages"],
        options={"enable_fp_fusion": REDUCE["enable_fp_fusion"]},
    )
