"""Every op in plain torch: the specification. Read it to learn what an op means; compare with it to test a kernel.

It computes in float64 for float64 inputs and in float32 otherwise, one row of attention at a time: each row takes
the K and V that it sees, and no others. So unseen slots never affect it, and a row's result does not depend on other
rows, to the last bit. Written to be read, not to be fast.

Signatures are those of every backend: inputs (of an op with many, its record of
:mod:`~asyncthink_kernels.arguments`), then outputs to fill, then options by keyword. Index values are checked before
anything is written; those of a plan are checked already (:mod:`~asyncthink_kernels.plan`).

Letters: T rows (new tokens), B rows of a paged batch, Hq query heads, H kv heads, G = Hq / H, D and Dv key and value
head_dim, P pages, S page_size, L layers, I items, E entries, K shifts, R rotated pairs, N tokens, n states or pages.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional

from asyncthink_kernels import _values as check
from asyncthink_kernels.arguments import PagedAttention, Sample, TreeAttention
from asyncthink_kernels.backends import _sample
from asyncthink_kernels.packed import unpack_linear
from asyncthink_kernels.quantized import GROUP, ZERO, QuantizedWeight


def unavailable_reason(op: str, device: str) -> str | None:
    """It runs every op everywhere."""
    return None


def note(device: str) -> str:
    return "plain torch"


def append_kv(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
    """K and V of T new tokens into their slots; -1 is no slot."""
    check.slots("append_kv", "slots", slots, k_cache.shape[0] * k_cache.shape[1], padding=True, distinct=True)
    written = slots >= 0
    page, offset = _place(slots[written], k_cache.shape[1])
    k_cache[page, offset] = k[written]
    v_cache[page, offset] = v[written]


def tree_attention(args: TreeAttention, out: Tensor, lse: Tensor) -> None:
    """Entry by entry what a row sees of an item, then row by row one softmax over its entries in order of `partial`."""
    S, H = args.k_cache.shape[1:3]
    q = _accumulate(args.q) * args.logit_scale
    position_of, shift_of = args.positions.tolist(), args.shifts.tolist()
    entries = args.entries.tolist()
    parts: dict[int, tuple[Tensor, Tensor]] = {}  # by partial: logits [H, G, N] and values [N, H, Dv] of N tokens
    for page_begin, offset, _length, item_position, entry_begin, entry_end in args.items.tolist():
        for row, begin, end, shift, partial in entries[entry_begin:entry_end]:
            if args.window is not None:
                distance = position_of[row] - item_position - shift_of[shift]  # from the item's first token to the row
                begin, end = max(begin, distance - args.window + 1), min(end, distance + 1)
            if begin < end:
                token = torch.arange(offset + begin, offset + end, device=q.device)
                page, place = args.pages[page_begin + token // S].long(), token % S
                query = q[row]
                if shift and args.cos is not None and args.sin is not None:
                    query = _rotate(query, args.cos[shift], -args.sin[shift], args.interleaved)
                logits = _logits(query, _accumulate(args.k_cache[page, place]), args.softcap)
                parts[partial] = (logits, _accumulate(args.v_cache[page, place]))
    for row, (first, last) in enumerate(pairwise(args.row_ptr.tolist())):
        mine = [parts[partial] for partial in range(first, last) if partial in parts]
        _softmax_into(out[row], lse[row], [part[0] for part in mine], [part[1] for part in mine], H, args.sinks)


def paged_attention(args: PagedAttention, out: Tensor, lse: Tensor) -> None:
    """Row b sees the first ``seq_lens[b]`` tokens of its block table; ``chunk`` is ignored here."""
    P, S, H = args.k_cache.shape[:3]
    check.block_tables("paged_attention", args.block_tables, args.seq_lens, num_pages=P, page_size=S)
    q = _accumulate(args.q) * args.logit_scale
    for row, end in enumerate(args.seq_lens.tolist()):
        begin = 0 if args.window is None else max(0, end - args.window)
        token = torch.arange(begin, end, device=q.device)
        page, place = args.block_tables[row, token // S].long(), token % S
        logits = [_logits(q[row], _accumulate(args.k_cache[page, place]), args.softcap)] if end else []
        _softmax_into(out[row], lse[row], logits, [_accumulate(args.v_cache[page, place])], H, args.sinks)


def merge_states(out_states: Tensor, lse_states: Tensor, out: Tensor, lse: Tensor) -> None:
    """Softmax-weighted mean of n partial outputs, weights exp(lse). -inf counts for nothing; +inf and NaN make NaN."""
    empty = lse_states == -math.inf  # [n, T, H]
    weight = torch.where(empty, 0, torch.softmax(lse_states, dim=0))
    states = torch.where(empty[..., None], 0, _accumulate(out_states))
    out.copy_((weight[..., None] * states).sum(dim=0))
    wrong = (lse_states == math.inf).any(dim=0)  # a softmax of +inf is NaN, its logsumexp would be +inf
    lse.copy_(torch.where(wrong, math.nan, torch.logsumexp(lse_states, dim=0)))


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
    """Copy N tokens from slot to slot in every layer; the first 2R dims of K are rotated by the layer's angles."""
    S, slots = k_caches.shape[2], k_caches.shape[1] * k_caches.shape[2]
    check.slots("join_append", "src_slots", src_slots, slots)
    check.slots("join_append", "dst_slots", dst_slots, slots, distinct=True, apart_from=("src_slots", src_slots))
    src_page, src_offset = _place(src_slots, S)
    dst_page, dst_offset = _place(dst_slots, S)
    for layer in range(k_caches.shape[0]):
        k = k_caches[layer, src_page, src_offset]  # [N, H, D]
        front = k[..., : 2 * cos.shape[1]]
        front.copy_(_rotate(_accumulate(front), cos[layer], sin[layer], interleaved))
        k_caches[layer, dst_page, dst_offset] = k
        v_caches[layer, dst_page, dst_offset] = v_caches[layer, src_page, src_offset]


def copy_pages(k_caches: Tensor, v_caches: Tensor, src: Tensor, dst: Tensor) -> None:
    """Copy whole pages in every layer, bit for bit."""
    check.slots("copy_pages", "src", src, k_caches.shape[1])
    check.slots("copy_pages", "dst", dst, k_caches.shape[1], distinct=True, apart_from=("src", src))
    k_caches[:, dst] = k_caches[:, src]
    v_caches[:, dst] = v_caches[:, src]


def sample(args: Sample, tokens: Tensor, logprobs: Tensor) -> None:
    """Row by row: sort, cut off, add up in integers. A row without a finite maximum is an error on a CPU, else -1."""
    check.drawing("sample", args.temperature, args.top_k, args.top_p, args.min_p)
    keys = zip(args.seeds.tolist(), args.agents.tolist(), args.positions.tolist(), strict=True)
    for row, (seed, agent, position) in enumerate(keys):
        x = args.logits[row].float()
        peak = x.amax()
        if not peak.isfinite():
            if x.device.type == "cpu":
                raise ValueError(f"sample: logits must be finite, got maximum {peak.item()} in row {row}")
            tokens[row], logprobs[row] = -1, math.nan
            continue
        greedy = args.temperature[row] == 0
        temperature = torch.where(greedy, 1.0, args.temperature[row : row + 1])
        weight = _sample.weights(x, peak, temperature)
        kept = _filtered(x, weight, int(args.top_k[row]), float(args.top_p[row]), float(args.min_p[row]))
        drawn_weight = (_sample.random_bits(seed, agent, position) * int(kept.sum())) >> 53
        drawn = torch.searchsorted(kept.cumsum(0), drawn_weight, right=True)
        token = torch.where(greedy, (x == peak).int().argmax(), drawn)
        tokens[row] = token
        logit = (x[token].double() - peak.double()) / temperature[0].double()
        logprobs[row] = logit - math.log(int(weight.sum()) / _sample.ONE)


def quantized_linear(x: Tensor, weight: QuantizedWeight, bias: Tensor | None, y: Tensor) -> None:
    """Group after group: exact sums of products of integers, times both scales. x becomes integers in float32."""
    integers, scales = _in_8_bits(x.float())  # [T, G, 32], [T, G]
    T, G, wide = x.shape[0], scales.shape[1], y.dtype if y.dtype == torch.float64 else torch.float32
    u = functional.pad(weight.integers(), (0, G * GROUP - x.shape[1])).view(-1, G, GROUP).double()
    if weight.mins is None:
        u = u - ZERO[weight.bits]
    per_weight = weight.per_group(weight.scales).to(wide)
    mins = None if weight.mins is None else weight.per_group(weight.mins).to(wide)
    total = torch.zeros(T, weight.out_features, dtype=wide, device=x.device)
    for g in range(G):
        mine = scales[:, g, None].to(wide)
        sums = integers[:, g] @ u[:, g].T  # integers in float64: exact
        total = total + sums.to(wide) * (per_weight[:, g] * mine)
        if mins is not None:
            total = total + mins[:, g] * (mine * integers[:, g].sum(1, keepdim=True).to(wide))
    y.copy_(total if bias is None else total + bias)


def packed_linear(x: Tensor, packed: Tensor, bias: Tensor | None, y: Tensor) -> None:
    """Every product in float64; a row at a time, so that rows do not depend on each other."""
    weight = unpack_linear(packed, y.shape[1]).double().T
    for row in range(x.shape[0]):
        total = x[row].double() @ weight
        y[row] = total if bias is None else total + bias.double()


def _in_8_bits(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [T, I] float32 -> integers [T, G, 32] float64 in [-127, 127], scales [T, G] (NaN where x is not finite)."""
    T, G = x.shape[0], -(-x.shape[1] // GROUP)
    groups = functional.pad(x, (0, G * GROUP - x.shape[1])).view(T, G, GROUP)
    largest = groups.abs().amax(2)
    finite = groups.isfinite().all(2)
    counts = finite & (largest >= 1e-30)
    full = torch.full_like(largest, 127)
    inverse = torch.where(counts, full / largest, 0)
    integers = torch.where(counts[..., None], groups * inverse[..., None], 0).round().double()
    return integers, torch.where(counts, largest / full, torch.where(finite, 0, math.nan))


def _filtered(x: Tensor, weight: Tensor, top_k: int, top_p: float, min_p: float) -> Tensor:
    """weight [V] with zeros for tokens outside top-k, top-p and min-p; equal logits stand in order of index."""
    order = x.sort(descending=True, stable=True).indices
    order = order[: top_k or None]
    if top_p < 1:
        ordered = weight[order]
        enough = max(int(top_p * float(int(ordered.sum()))), 1)
        order = order[ordered.cumsum(0) - ordered < enough]
    kept = torch.zeros_like(weight)
    kept[order] = weight[order]
    return torch.where(kept.double() >= min_p * float(_sample.ONE), kept, 0)


def _accumulate(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _place(slots: Tensor, page_size: int) -> tuple[Tensor, Tensor]:
    return slots // page_size, slots % page_size


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """x [..., D] with its first R pairs rotated by the angles of cos, sin [R]; the rest as it is.

    Pairs are (i, i + R), or (2i, 2i + 1) if ``interleaved``: (a, b) -> (a cos - b sin, b cos + a sin).
    """
    R = cos.shape[-1]
    a, b = (x[..., 0 : 2 * R : 2], x[..., 1 : 2 * R : 2]) if interleaved else (x[..., :R], x[..., R : 2 * R])
    rotated = (a * cos - b * sin, b * cos + a * sin)
    front = torch.stack(rotated, dim=-1).flatten(-2) if interleaved else torch.cat(rotated, dim=-1)
    return torch.cat((front, x[..., 2 * R :]), dim=-1)


def _logits(query: Tensor, k: Tensor, softcap: float | None) -> Tensor:
    """query [Hq, D] (scaled), k [N, H, D] -> [H, G, N]."""
    H = k.shape[1]
    logits = query.view(H, -1, query.shape[-1]) @ k.permute(1, 2, 0)
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def _softmax_into(
    out: Tensor, lse: Tensor, logits: list[Tensor], v: list[Tensor], kv_heads: int, sinks: Tensor | None
) -> None:
    """out [Hq, Dv] and lse [Hq] of one row from the parts it sees. A sink is one more logit, without a value."""
    if not logits:
        out.zero_()
        lse.copy_(sinks) if sinks is not None else lse.fill_(-math.inf)
        return
    if sinks is not None:
        logits = [*logits, sinks.view(kv_heads, -1, 1)]
    joined, values = torch.cat(logits, dim=-1), torch.cat(v)  # [H, G, N (+ 1)], [N, H, Dv]
    weight = torch.softmax(joined, dim=-1)[..., : values.shape[0]]
    out.copy_((weight @ values.transpose(0, 1)).flatten(0, 1))
    lse.copy_(torch.logsumexp(joined, dim=-1).flatten())
