"""The arithmetic of attention that tree and paged kernels share: one tile of rows against one run of paged tokens.

Letters in kernels: M rows of a tile, N tokens of a block, BD and BDV powers of two that hold D and DV.

A row's result must not depend on the rows beside it, to the last bit. So blocks begin at multiples of N in the run,
whoever looks, and a block that a row does not see leaves its state as it was (factor 1, summand 0). Kernels that call
this are launched with ``enable_fp_fusion=False``: what is computed is then what is written, on every path.
"""

from __future__ import annotations

import triton
import triton.language as tl

from asyncthink_kernels.backends.triton._numeric import dot, narrow

LOG2E = tl.constexpr(1.4426950408889634)
_MINUS_2_LOG2E = tl.constexpr(-2.8853900817779268)
LN2 = tl.constexpr(0.6931471805599453)
_MINUS_INFINITY = tl.constexpr(float("-inf"))


@triton.jit
def _tanh(x):
    """tanh to float32 precision everywhere: by its series near 0, where the quotient cancels."""
    square = x * x
    series = x * (1.0 + square * (-0.3333333333 + square * (0.1333333333 + square * (-0.0539682540))))
    decay = tl.exp2(tl.abs(x) * _MINUS_2_LOG2E)
    quotient = (1.0 - decay) / (1.0 + decay)
    return tl.where(tl.abs(x) < 0.1, series, tl.where(x < 0.0, -quotient, quotient))


@triton.jit
def attend(
    q, begin, end, first, limit, k_ptr, v_ptr, pages_ptr, offset,
    k_page_stride, k_slot_stride, v_page_stride, v_slot_stride, scale, softcap,
    SOFTCAP: tl.constexpr, PAGE: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
    M: tl.constexpr, N: tl.constexpr, BD: tl.constexpr, BDV: tl.constexpr,
):  # fmt: skip
    """Online softmax of rows q [M, BD] over the tokens [first, limit) of a run, of which row i sees [begin[i], end[i]).

    Token j of the run lies at place ``offset + j`` of the pages at ``pages_ptr``. ``scale`` turns products into logits
    in base 2; with SOFTCAP it turns them into logits / softcap, and ``softcap`` is in base 2. Returns the normalised
    output [M, BDV] float32 and the LSE [M] in base 2; 0 and -inf for a row that sees nothing. Tokens outside
    [first, limit) are not read. A NaN or an infinity in V at a token inside reaches every row, also those that do not
    see it (a weight of zero does not silence it in a product): the caller looks for that.
    """
    m = tl.full([M], _MINUS_INFINITY, tl.float32)
    l = tl.zeros([M], tl.float32)
    acc = tl.zeros([M, BDV], tl.float32)
    dim = tl.arange(0, BD)
    v_dim = tl.arange(0, BDV)
    for start in tl.range(first // N * N, limit, N):
        token = start + tl.arange(0, N)
        inside = (token >= first) & (token < limit)
        place = offset + token
        page = tl.load(pages_ptr + place // PAGE, mask=inside, other=0).to(tl.int64)
        in_page = (place % PAGE).to(tl.int64)

        k_at = k_ptr + (page * k_page_stride + in_page * k_slot_stride)[:, None] + dim[None, :]
        k = tl.load(k_at, mask=inside[:, None] & (dim < D)[None, :], other=0.0)
        logits = dot(q, tl.trans(k), None) * scale
        if SOFTCAP:
            logits = _tanh(logits) * softcap
        seen = (token[None, :] >= begin[:, None]) & (token[None, :] < end[:, None])
        logits = tl.where(seen, logits, _MINUS_INFINITY)
        raised = tl.maximum(m, tl.max(logits, 1))
        safe = tl.where(raised == _MINUS_INFINITY, 0.0, raised)
        keep = tl.exp2(m - safe)
        weight = tl.exp2(logits - safe[:, None])
        l = l * keep + tl.sum(weight, 1)
        m = raised

        v_at = v_ptr + (page * v_page_stride + in_page * v_slot_stride)[:, None] + v_dim[None, :]
        v = tl.load(v_at, mask=inside[:, None] & (v_dim < DV)[None, :], other=0.0)
        acc = dot(narrow(weight, v.dtype), v, acc * keep[:, None])

    # Not "m is -inf": a maximum passes over NaN, so a row of nothing but NaN has that too.
    total = tl.where(l == 0.0, 1.0, l)
    return acc / total[:, None], m + tl.log2(total)


@triton.jit
def rotate_queries(
    q, q_at, live, turn, cos_ptr, sin_ptr, PAIRS: tl.constexpr, INTERLEAVED: tl.constexpr, BD: tl.constexpr
):
    """q [M, BD] with its first PAIRS pairs turned back by the angles of row ``turn[i]`` of cos, sin; as is for turn 0.

    Keys of a linked segment stand ``shift`` positions off; R(-shift) q meets them as q would meet R(shift) k.
    """
    dim = tl.arange(0, BD)
    if INTERLEAVED:
        second = dim % 2 == 1
        partner = tl.where(second, dim - 1, dim + 1)
        pair = dim // 2
    else:
        second = dim >= PAIRS
        partner = tl.where(second, dim - PAIRS, dim + PAIRS)
        pair = tl.where(second, dim - PAIRS, dim)
    turns = (live & (turn > 0))[:, None] & (dim < 2 * PAIRS)[None, :]
    other = tl.load(q_at[:, None] + partner[None, :], mask=turns, other=0.0).to(tl.float32)
    angle = turn[:, None] * PAIRS + pair[None, :]
    cos = tl.load(cos_ptr + angle, mask=turns, other=1.0)
    sin = tl.load(sin_ptr + angle, mask=turns, other=0.0)
    turned = q.to(tl.float32) * cos + tl.where(second[None, :], -other, other) * sin
    return tl.where(turns, narrow(turned, q.dtype), q)


@triton.jit
def with_sinks(out, lse, sinks_ptr, head):
    """``out`` [M, BDV] and ``lse`` [M] (base 2) with one more logit, sinks[head], in the denominator; LSE natural."""
    sink = tl.load(sinks_ptr + head)
    high = tl.maximum(lse, sink * LOG2E)
    total = high + tl.log2(tl.exp2(lse - high) + tl.exp2(sink * LOG2E - high))
    nothing = lse == _MINUS_INFINITY  # the sink may be -inf too, and their difference NaN
    return out * tl.where(nothing, 0.0, tl.exp2(lse - total))[:, None], tl.where(nothing, sink, total * LN2)


@triton.jit
def store_tile(parts_ptr, part_lse_ptr, out, lse, mine, DV: tl.constexpr, M: tl.constexpr, BDV: tl.constexpr):
    """out [M, BDV] and lse [M] of the rows that are ``mine`` to M consecutive rows of [*, DV] and [*]."""
    row = tl.arange(0, M)
    dim = tl.arange(0, BDV)
    there = mine[:, None] & (dim < DV)[None, :]
    tl.store(parts_ptr + row[:, None] * DV + dim[None, :], narrow(out, parts_ptr.dtype.element_ty), mask=there)
    tl.store(part_lse_ptr + row, lse, mask=mine)
