"""paged_attention in Triton: sequences split into chunks, then one reduction."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from asyncthink_kernels import _values, tuning
from asyncthink_kernels.arguments import PagedAttention
from asyncthink_kernels.backends.triton._attend import LN2, attend, store_tile, with_sinks
from asyncthink_kernels.backends.triton._attention import (
    ALIGNED_STRIDES,
    REDUCE,
    Logits,
    Specialization,
    blocks,
    cache_strides,
    options,
    partials,
    reduction_variants,
    require_served,
    specializations,
    tile_for,
)
from asyncthink_kernels.backends.triton._launch import Variant
from asyncthink_kernels.backends.triton._reduce import reduce_rows, split_range


@triton.jit(do_not_specialize=("splits", "table_stride", "chunk", "window"))
def paged_splits(
    q_ptr, k_ptr, v_ptr, block_tables_ptr, seq_lens_ptr, sinks_ptr, out_ptr, lse_ptr, parts_ptr, part_lse_ptr,
    splits, table_stride, chunk, scale, softcap, window, q_row_stride, q_head_stride,
    k_page_stride, k_slot_stride, k_head_stride, v_page_stride, v_slot_stride, v_head_stride,
    HEADS: tl.constexpr, GROUP: tl.constexpr, PAGE: tl.constexpr,
    D: tl.constexpr, DV: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr, M: tl.constexpr, N: tl.constexpr,
    WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, SINKS: tl.constexpr, DIRECT: tl.constexpr,
):  # fmt: skip
    """M query heads of one kv head's group against one chunk of one sequence. Heads run fastest."""
    head = tl.program_id(0) % HEADS
    tile = tl.program_id(0) // HEADS % tl.cdiv(GROUP, M)
    split = tl.program_id(0) // (HEADS * tl.cdiv(GROUP, M)) % splits
    row = tl.program_id(0) // (HEADS * tl.cdiv(GROUP, M)) // splits
    seq_len = tl.load(seq_lens_ptr + row)
    first_split, end_split = split_range(seq_len, window, chunk, WINDOW)
    if DIRECT:  # also a sequence of no tokens has its output from here
        end_split = tl.maximum(end_split, 1)
    if (split < first_split) | (split >= end_split):
        return
    start = split * chunk
    index = tile * M + tl.arange(0, M)
    live = index < GROUP
    begin = tl.maximum(seq_len - window - start, 0) if WINDOW else 0
    end = tl.minimum(seq_len - start, chunk)

    dim = tl.arange(0, BD)
    q_head = head * GROUP + index
    q_at = q_ptr + row.to(tl.int64) * q_row_stride + q_head.to(tl.int64) * q_head_stride
    q = tl.load(q_at[:, None] + dim[None, :], mask=live[:, None] & (dim < D)[None, :], other=0.0)
    out, lse = attend(
        q, begin + tl.zeros([M], tl.int32), end + tl.zeros([M], tl.int32), begin, end,
        k_ptr + head.to(tl.int64) * k_head_stride, v_ptr + head.to(tl.int64) * v_head_stride,
        block_tables_ptr + row.to(tl.int64) * table_stride + start // PAGE, start % PAGE,
        k_page_stride, k_slot_stride, v_page_stride, v_slot_stride, scale, softcap,
        SOFTCAP, PAGE, D, DV, M, N, BD, BDV,
    )  # fmt: skip

    if DIRECT:  # one split a sequence
        if SINKS:
            out, lse = with_sinks(out, lse, sinks_ptr, tl.where(live, q_head, 0))
        else:
            lse *= LN2
        at = row.to(tl.int64) * (HEADS * GROUP) + head * GROUP + tile * M
        store_tile(out_ptr + at * DV, lse_ptr + at, out, lse, live, DV, M, BDV)
    else:
        entries = (tl.num_programs(0) // (HEADS * tl.cdiv(GROUP, M))).to(tl.int64)
        at = (head * entries + row * splits + split) * GROUP + tile * M
        store_tile(parts_ptr + at * DV, part_lse_ptr + at, out, lse, live, DV, M, BDV)


def paged_attention(args: PagedAttention, out: Tensor, lse: Tensor) -> None:
    """Two launches; the host reads no value unless asked to."""
    q, k_cache, v_cache, tables, seq_lens = args.q, args.k_cache, args.v_cache, args.block_tables, args.seq_lens
    require_served("paged_attention", q)
    P, S, H, _ = k_cache.shape
    B, Hq, D = q.shape
    if _values.readable(q):
        _values.block_tables("paged_attention", tables, seq_lens, num_pages=P, page_size=S)
    if B == 0:
        return
    group, longest, window = Hq // H, tables.shape[1] * S, args.window or 0
    chunk = min(args.chunk, max(longest, 1))
    splits = -(-longest // chunk)
    tile, launch = tile_for(q, v_cache, group)
    direct = splits == 1
    parts, part_lse = (out, lse) if direct else partials(B * splits, q, v_cache)
    logits = Logits.of(args.logit_scale, args.softcap)
    dims = blocks(D, v_cache.shape[3])
    switches = {"WINDOW": args.window is not None, "SINKS": args.sinks is not None}
    with torch.cuda.device_of(q):
        if splits:
            paged_splits[(B * splits * -(-group // tile.rows) * H,)](
                q, k_cache, v_cache, tables, seq_lens, args.sinks, out, lse, parts, part_lse,
                splits, tables.stride(0), chunk, logits.scale, logits.softcap, window,
                *q.stride()[:2], *cache_strides(k_cache, v_cache),
                HEADS=H, GROUP=group, PAGE=S, **dims, M=tile.rows, N=tile.tokens, SOFTCAP=args.softcap is not None,
                DIRECT=direct, **switches, **launch,
            )  # fmt: skip
        if not direct:
            reduce_rows[(B * Hq,)](
                parts, part_lse, seq_lens, seq_lens, seq_lens, args.sinks, out, lse, B * splits, splits, window, chunk,
                HEADS=H, GROUP=group, DV=dims["DV"], BDV=dims["BDV"], P=tuning.partials_block(dims["DV"]), PAGED=True,
                **switches, **REDUCE,
            )  # fmt: skip


def variants(arch: str) -> list[Variant]:
    """What is launched for 8 kv heads in groups of 4, pages of 16."""
    return [_variant(each) for each in specializations(arch)] + reduction_variants(paged=True)


def _variant(s: Specialization) -> Variant:
    tensors = {
        **dict.fromkeys(("q_ptr", "k_ptr", "v_ptr", "out_ptr"), f"*{s.dtype}"),
        **dict.fromkeys(("block_tables_ptr", "seq_lens_ptr"), "*i32"),
        "lse_ptr": "*fp32",
        # One split a sequence writes its output in place of partial results.
        "parts_ptr": f"*{s.dtype}" if s.everything else "*fp32",
        "part_lse_ptr": "*fp32",
        **({"sinks_ptr": "*fp32"} if s.everything else {}),
    }
    numbers = dict.fromkeys(("splits", "table_stride", "chunk", "window"), "i32")
    numbers |= dict.fromkeys(("scale", "softcap"), "fp32") | dict.fromkeys(ALIGNED_STRIDES, "i32")
    constants = {"HEADS": 8, "GROUP": 4, "PAGE": 16, **blocks(s.head_dim, s.v_head_dim)}
    constants |= {"M": s.tile.rows, "N": s.tile.tokens}
    constants |= dict.fromkeys(("WINDOW", "SOFTCAP", "SINKS", "DIRECT"), s.everything)
    return Variant(
        name=f"paged_splits-{s.name}",
        kernel=paged_splits,
        types=tensors | numbers,
        constants=constants | ({} if s.everything else {"sinks_ptr": None}),
        aligned=frozenset((*tensors, *ALIGNED_STRIDES)),
        num_warps=s.tile.warps,
        num_stages=s.tile.stages,
        options=options(s.arch),
    )
