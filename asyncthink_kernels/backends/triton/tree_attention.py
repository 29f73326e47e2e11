"""tree_attention in Triton: every chunk of the tree against tiles of the rows that see it, then one reduction."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from asyncthink_kernels import tuning
from asyncthink_kernels.arguments import TreeAttention
from asyncthink_kernels.backends.triton._attend import attend, rotate_queries, store_tile
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
from asyncthink_kernels.backends.triton._reduce import reduce_rows

#: Items that a program looks at at once in its search for its own: two for each lane.
RADIX = tl.constexpr(256)
_FAR = tl.constexpr(2**31 - 1)


@triton.jit
def find_item(items_ptr, num_items, slot, GROUP: tl.constexpr, M: tl.constexpr, LEVELS: tl.constexpr):
    """The item that tile ``slot`` belongs to, and the first of the item's tiles.

    Item i has its tiles from i + entry_begin[i] GROUP // M on. Items stand in the order of their entries, so that
    leaves each at least ceil(entries GROUP / M) tiles, and all tiles together are at most I + E GROUP // M: a bound
    known without looking at the plan, so one launch serves every plan of these sizes. The search takes log256(I) steps.
    """
    item = slot * 0
    for level in tl.static_range(LEVELS):
        index = item + tl.arange(0, RADIX) * RADIX ** (LEVELS - 1 - level)
        begin = tl.load(items_ptr + index * 6 + 4, mask=index < num_items, other=0)
        fits = (index < num_items) & (index + begin * GROUP // M <= slot)
        item += (tl.sum(fits.to(tl.int32), 0) - 1) * RADIX ** (LEVELS - 1 - level)
    return item, item + tl.load(items_ptr + item * 6 + 4) * GROUP // M


@triton.jit(do_not_specialize=("num_items", "num_entries", "window"))
def tree_items(
    q_ptr, k_ptr, v_ptr, items_ptr, pages_ptr, entries_ptr, positions_ptr, shifts_ptr, cos_ptr, sin_ptr,
    parts_ptr, part_lse_ptr, entry_of_ptr,
    num_items, num_entries, scale, softcap, window, q_row_stride, q_head_stride,
    k_page_stride, k_slot_stride, k_head_stride, v_page_stride, v_slot_stride, v_head_stride,
    HEADS: tl.constexpr, GROUP: tl.constexpr, PAGE: tl.constexpr, PAIRS: tl.constexpr,
    D: tl.constexpr, DV: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, LEVELS: tl.constexpr,
    WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, ROTARY: tl.constexpr, INTERLEAVED: tl.constexpr,
):  # fmt: skip
    """One tile of M rows (entries x GROUP) of one item and kv head. Heads run fastest: they share cache lines.

    Partial results stand in the order of the entries, so that a tile is stored as one piece: the addresses of a scatter
    would take the registers that the accumulator needs. ``entry_of`` [E] tells the reduction where a partial stands.
    """
    head = tl.program_id(0) % HEADS
    slot = tl.program_id(0) // HEADS
    item, first_slot = find_item(items_ptr, num_items, slot, GROUP, M, LEVELS)
    item_ptr = items_ptr + item * 6
    entry_begin = tl.load(item_ptr + 4)
    first = (slot - first_slot) * M
    rows = (tl.load(item_ptr + 5) - entry_begin) * GROUP
    if first >= rows:
        return
    index = first + tl.arange(0, M)
    live = index < rows
    entry = entry_begin + index // GROUP
    entry_ptr = entries_ptr + entry.to(tl.int64) * 5
    row = tl.load(entry_ptr, mask=live, other=0)
    begin = tl.load(entry_ptr + 1, mask=live, other=0)
    end = tl.load(entry_ptr + 2, mask=live, other=0)
    turn = tl.load(entry_ptr + 3, mask=live, other=0)
    partial = tl.load(entry_ptr + 4, mask=live, other=0)
    tl.store(entry_of_ptr + partial, entry, mask=live & (head == 0))
    if WINDOW:
        shift = tl.load(shifts_ptr + turn, mask=live, other=0)
        distance = tl.load(positions_ptr + row, mask=live, other=0) - tl.load(item_ptr + 3) - shift
        begin = tl.maximum(begin, distance - window + 1)
        end = tl.minimum(end, distance + 1)
    dim = tl.arange(0, BD)
    q_head = (head * GROUP + index % GROUP).to(tl.int64)
    q_at = q_ptr + row.to(tl.int64) * q_row_stride + q_head * q_head_stride
    q = tl.load(q_at[:, None] + dim[None, :], mask=live[:, None] & (dim < D)[None, :], other=0.0)
    if ROTARY:
        q = rotate_queries(q, q_at, live, turn, cos_ptr, sin_ptr, PAIRS, INTERLEAVED, BD)

    k_ptr += head.to(tl.int64) * k_head_stride
    v_ptr += head.to(tl.int64) * v_head_stride
    pages_ptr += tl.load(item_ptr)
    offset = tl.load(item_ptr + 1)
    alone = entry_begin - 1  # the one entry of this pass; before the first entry: all of them together
    last = entry_begin
    while alone < last:
        mine = live & ((alone < entry_begin) | (entry == alone))
        sees = mine & (begin < end)
        low = tl.min(tl.where(sees, begin, _FAR), 0)
        high = tl.max(tl.where(sees, end, 0), 0)
        out, lse = attend(
            q, begin, end, tl.minimum(low, high), high, k_ptr, v_ptr, pages_ptr, offset,
            k_page_stride, k_slot_stride, v_page_stride, v_slot_stride, scale, softcap,
            SOFTCAP, PAGE, D, DV, M, N, BD, BDV,
        )  # fmt: skip
        odd = tl.max(tl.max(tl.where(tl.abs(out) < float("inf"), 0, 1), 1), 0) > 0
        if odd & (alone < entry_begin):
            # Some row sees a NaN or an infinity, which must not reach rows that do not see it. Each entry gets a pass
            # over its own tokens only; for rows without a NaN that computes the same again.
            last = entry_begin + tl.cdiv(tl.minimum(rows, first + M), GROUP)
            alone = entry_begin + first // GROUP
        else:
            # `alone` is never below -1. Said so that the compiler does not keep all addresses in registers.
            same = tl.minimum(alone + 1, 0) + first
            at = (head.to(tl.int64) * num_entries + entry_begin) * GROUP + same
            store_tile(parts_ptr + at * DV, part_lse_ptr + at, out, lse, mine, DV, M, BDV)
            alone += 1


def search_levels(num_items: int) -> int:
    """Steps of the search over ``num_items`` items: 1 up to 256 of them, 2 up to 65,536."""
    levels = 1
    while RADIX.value**levels < num_items:
        levels += 1
    return levels


def tree_attention(args: TreeAttention, out: Tensor, lse: Tensor) -> None:
    """Two launches; the host reads no value."""
    q, k_cache, v_cache, cos = args.q, args.k_cache, args.v_cache, args.cos
    require_served("tree_attention", q)
    S, H = k_cache.shape[1:3]
    T, Hq, D = q.shape
    num_items, E = args.items.shape[0], args.entries.shape[0]
    if T == 0:
        return
    group = Hq // H
    tile, launch = tile_for(q, v_cache, group * E / max(num_items, 1))
    parts, part_lse = partials(E, q, v_cache)
    entry_of = torch.empty(E, dtype=torch.int32, device=q.device)
    logits = Logits.of(args.logit_scale, args.softcap)
    dims = blocks(D, v_cache.shape[3])
    with torch.cuda.device_of(q):
        if num_items:
            tree_items[((num_items + E * group // tile.rows) * H,)](
                q, k_cache, v_cache, args.items, args.pages, args.entries, args.positions, args.shifts, cos, args.sin,
                parts, part_lse, entry_of,
                num_items, E, logits.scale, logits.softcap, args.window or 0,
                *q.stride()[:2], *cache_strides(k_cache, v_cache),
                HEADS=H, GROUP=group, PAGE=S, PAIRS=0 if cos is None else cos.shape[1], **dims,
                M=tile.rows, N=tile.tokens, LEVELS=search_levels(num_items),
                WINDOW=args.window is not None, SOFTCAP=args.softcap is not None,
                ROTARY=cos is not None, INTERLEAVED=args.interleaved,
                **launch,
            )  # fmt: skip
        reduce_rows[(T * Hq,)](
            parts, part_lse, entry_of, args.row_ptr, args.row_ptr, args.sinks, out, lse, E, 0, 0, 1,
            HEADS=H, GROUP=group, DV=dims["DV"], BDV=dims["BDV"], P=tuning.partials_block(dims["DV"]),
            PAGED=False, WINDOW=False, SINKS=args.sinks is not None, **REDUCE,
        )  # fmt: skip


def variants(arch: str) -> list[Variant]:
    """What is launched for 8 kv heads in groups of 4, pages of 16, up to 256 items."""
    return [_variant(each) for each in specializations(arch)] + reduction_variants(paged=False)


def _variant(s: Specialization) -> Variant:
    indices = ("items_ptr", "pages_ptr", "entries_ptr", "positions_ptr", "shifts_ptr", "entry_of_ptr")
    angles = dict.fromkeys(("cos_ptr", "sin_ptr"), "*fp32")
    tensors = {
        **dict.fromkeys(("q_ptr", "k_ptr", "v_ptr"), f"*{s.dtype}"),
        **dict.fromkeys(indices, "*i32"),
        **dict.fromkeys(("parts_ptr", "part_lse_ptr"), "*fp32"),
        **(angles if s.everything else {}),
    }
    numbers = dict.fromkeys(("num_items", "num_entries", "window"), "i32") | dict.fromkeys(("scale", "softcap"), "fp32")
    constants = {"HEADS": 8, "GROUP": 4, "PAGE": 16, "PAIRS": s.head_dim // 2 if s.everything else 0}
    constants |= {**blocks(s.head_dim, s.v_head_dim), "M": s.tile.rows, "N": s.tile.tokens, "LEVELS": search_levels(1)}
    constants |= {**dict.fromkeys(("WINDOW", "SOFTCAP", "ROTARY"), s.everything), "INTERLEAVED": False}
    return Variant(
        name=f"tree_items-{s.name}",
        kernel=tree_items,
        types=tensors | numbers | dict.fromkeys(ALIGNED_STRIDES, "i32"),
        constants=constants | ({} if s.everything else dict.fromkeys(angles)),
        aligned=frozenset((*tensors, *ALIGNED_STRIDES)),
        num_warps=s.tile.warps,
        num_stages=s.tile.stages,
        options=options(s.arch),
    )
