"""Partial results of one row into its output, in fixed order: what tree and paged attention end with."""

from __future__ import annotations

import triton
import triton.language as tl

from asyncthink_kernels.backends.triton._attend import LN2, with_sinks
from asyncthink_kernels.backends.triton._numeric import narrow


@triton.jit
def split_range(seq_len, window, chunk, WINDOW: tl.constexpr):
    """The splits [first, last) of ``chunk`` tokens that hold what the last token of a sequence sees."""
    first = tl.maximum(seq_len - window, 0) // chunk if WINDOW else 0
    return first, tl.cdiv(seq_len, chunk)


@triton.jit(do_not_specialize=("num_entries", "splits", "window", "chunk"))
def reduce_rows(
    parts_ptr, part_lse_ptr, entry_of_ptr, row_ptr_ptr, seq_lens_ptr, sinks_ptr, out_ptr, lse_ptr,
    num_entries, splits, window, chunk,
    HEADS: tl.constexpr, GROUP: tl.constexpr, DV: tl.constexpr, BDV: tl.constexpr, P: tl.constexpr,
    PAGED: tl.constexpr, WINDOW: tl.constexpr, SINKS: tl.constexpr,
):  # fmt: skip
    """out[row, head] = sum_i exp2(lse_i - lse) parts_i over the row's partials, P at a time, in ascending order.

    ``parts`` [HEADS, num_entries, GROUP, DV] stand by entry. Partials of a row are row_ptr[row] .. row_ptr[row + 1],
    those of entries entry_of[partial]; with PAGED its splits, from entry ``row * splits`` on. A row of none gets 0 and
    -inf (with a sink: LSE = sink).
    """
    row = tl.program_id(0) // (HEADS * GROUP)
    q_head = tl.program_id(0) % (HEADS * GROUP)
    if PAGED:
        first_split, end_split = split_range(tl.load(seq_lens_ptr + row), window, chunk, WINDOW)
        first = row * splits + first_split
        count = end_split - first_split
    else:
        first = tl.load(row_ptr_ptr + row)
        count = tl.load(row_ptr_ptr + row + 1) - first
    dim = tl.arange(0, BDV)
    high = tl.full([1], float("-inf"), tl.float32)
    total = tl.zeros([1], tl.float32)
    acc = tl.zeros([1, BDV], tl.float32)
    for start in tl.range(0, count, P):
        index = start + tl.arange(0, P)
        here = index < count
        entry = first + index
        if not PAGED:
            entry = tl.load(entry_of_ptr + entry, mask=here, other=0)
        at = ((q_head // GROUP).to(tl.int64) * num_entries + entry) * GROUP + q_head % GROUP
        lse = tl.load(part_lse_ptr + at, mask=here, other=float("-inf"))
        part = tl.load(parts_ptr + at[:, None] * DV + dim[None, :], mask=here[:, None] & (dim < DV)[None, :], other=0.0)
        raised = tl.maximum(high, tl.max(lse, 0))
        safe = tl.where(raised == float("-inf"), 0.0, raised)
        keep = tl.exp2(high - safe)
        weight = tl.exp2(lse - safe)
        total = total * keep + tl.sum(weight, 0)
        acc = acc * keep[:, None] + tl.sum(part * weight[:, None], 0)[None, :]
        high = raised
    total = tl.where(total == 0.0, 1.0, total)
    out = acc / total[:, None]
    lse = high + tl.log2(total)
    if SINKS:
        out, lse = with_sinks(out, lse, sinks_ptr, tl.full([1], 0, tl.int32) + q_head)
    else:
        lse *= LN2
    to = tl.program_id(0).to(tl.int64)
    tl.store(out_ptr + to * DV + dim[None, :], narrow(out, out_ptr.dtype.element_ty), mask=(dim < DV)[None, :])
    tl.store(lse_ptr + to + tl.arange(0, 1), lse)
