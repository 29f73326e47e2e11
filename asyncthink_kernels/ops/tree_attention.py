"""tree_attention: one step's attention of all branches over the paged tree."""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor

from asyncthink_kernels import dispatch
from asyncthink_kernels.ops._checks import FLOATS, INT32, Checks, attention_options, no_grad, wide
from asyncthink_kernels.ops._library import register


@overload
def tree_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    items: Tensor,
    pages: Tensor,
    entries: Tensor,
    row_ptr: Tensor,
    positions: Tensor,
    shifts: Tensor,
    *,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    interleaved: bool = False,
    return_lse: Literal[False] = False,
) -> Tensor: ...
@overload
def tree_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    items: Tensor,
    pages: Tensor,
    entries: Tensor,
    row_ptr: Tensor,
    positions: Tensor,
    shifts: Tensor,
    *,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    interleaved: bool = False,
    return_lse: Literal[True],
) -> tuple[Tensor, Tensor]: ...
def tree_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    items: Tensor,
    pages: Tensor,
    entries: Tensor,
    row_ptr: Tensor,
    positions: Tensor,
    shifts: Tensor,
    *,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    interleaved: bool = False,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention of T rows (new tokens of any number of branches) over a tree of paged K/V, each K/V token read once.

    For row r, query head h (kv head ``h // G``, G = Hq / H) and the tokens j that r sees::

        s_j = scale * <R(-d) q[r, h], k_j>           d: shift of the entry; R only where cos, sin are given
        s_j = softcap * tanh(s_j / softcap)          if softcap
        lse = log(exp(sinks[h]) + sum_j exp(s_j))    the sink only if given
        out = sum_j exp(s_j - lse) v_j

    An *item* is a run of at most one chunk of a node's tokens; an *entry* says that a row sees tokens [begin, end) of
    an item. Token j of an item stands at position ``item.position + j + shift`` in the row's branch; with ``window`` w
    the row sees it only if ``0 <= positions[row] - that < w``. A row that sees nothing has output 0 and LSE -inf (with
    a sink: LSE = sink). Tokens a row does not see have no say in it, whatever (NaN) lies there.

    Args:
        q: [T, Hq, D] queries, rotary embedding applied. float32, bfloat16, float16 (float64: reference backend only).
        k_cache: [P, S, H, D] keys of one layer, dtype of ``q``.
        v_cache: [P, S, H, Dv] values of one layer, dtype of ``q``.
        items: [I, 6] int32: page_begin, offset, length, position, entry_begin, entry_end. The item's ``length`` tokens
            begin at in-page ``offset`` of page ``pages[page_begin]`` and run on through consecutive ``pages``; its
            entries are ``entries[entry_begin:entry_end]``; ``position`` is that of its first token. Items stand in the
            order of their entries, without gaps, from entry 0 to ``row_ptr[T]``; an item of length 0 without entries
            (entry_begin = entry_end) is padding.
        pages: [N] int32 page ids of all items. Ids beyond an item's tokens are never looked at.
        entries: [E, 5] int32: row, begin, end, shift_index, partial. Every entry belongs to one item; ``partial`` is
            ``row_ptr[row]`` plus the rank of the entry within its row. E is a capacity: entries from ``row_ptr[T]`` on
            belong to nobody and are never looked at.
        row_ptr: [T + 1] int32: row r has entries with partials [row_ptr[r], row_ptr[r + 1]); a row may have none.
        positions: [T] int32 position of each row in its branch.
        shifts: [K] int32 position shifts, in tokens; ``shifts[0] == 0``. Shifts that no entry names have no say.
        scale: default D ** -0.5.
        window: sliding window in tokens, at least 1; None: no window.
        softcap: soft limit of the logits, above 0; None: no limit.
        sinks: [Hq] float32 (float64 with float64 ``q``): a logit for each head in the denominator alone.
        cos, sin: [K, R] float32 (float64 with float64 ``q``), 2R <= D: of the angle ``shifts[k] * inv_freq``; both or
            neither. None: shifts move positions only (layers without rotary embedding).
        interleaved: rotary pairs are dims (2i, 2i + 1) rather than (i, i + R).
        return_lse: also return the log-sum-exp.

    The last dimension of q, k_cache and v_cache is contiguous, other strides are free; the rest are contiguous.

    Returns:
        out [T, Hq, Dv] in the dtype of ``q``; with ``return_lse`` also lse [T, Hq], natural log, float32 (float64 with
        float64 ``q``).

    Raises:
        ValueError: a shape, dtype, device, stride or option that does not fit, or a page id, row, token range, shift
            index or partial out of range, or items that do not cover the entries in order. Index values on a GPU are
            looked at only under ``ASYNCTHINK_CHECK=1``.

    Source: shared-prefix decoding with softmax merge, Hydragen (arXiv 2402.05099, section 3.2); the rotation of the
    query instead of cached keys follows from RoPE being orthogonal (RoFormer, arXiv 2104.09864, section 3.2).

    Two branches of one token share four tokens in page 1; the second row sees only three of them:

    >>> import torch
    >>> from asyncthink_kernels import tree_attention
    >>> k_cache, v_cache = torch.zeros(2, 4, 1, 16), torch.arange(8.0).view(2, 4, 1, 1).expand(2, 4, 1, 16).contiguous()
    >>> int32 = lambda rows: torch.tensor(rows, dtype=torch.int32)
    >>> out = tree_attention(
    ...     torch.ones(2, 1, 16), k_cache, v_cache, items=int32([[0, 0, 4, 0, 0, 2]]), pages=int32([1]),
    ...     entries=int32([[0, 0, 4, 0, 0], [1, 0, 3, 0, 1]]), row_ptr=int32([0, 1, 2]), positions=int32([4, 3]),
    ...     shifts=int32([0]))
    >>> out[:, 0, 0].tolist()
    [5.5, 5.0]
    """
    no_grad("tree_attention", q=q, k_cache=k_cache, v_cache=v_cache)
    # fmt: off
    out, lse = _op(q, k_cache, v_cache, items, pages, entries, row_ptr, positions, shifts,
                   scale, window, softcap, sinks, cos, sin, interleaved)
    # fmt: on
    return (out, lse) if return_lse else out


def _outputs(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    items: Tensor,
    pages: Tensor,
    entries: Tensor,
    row_ptr: Tensor,
    positions: Tensor,
    shifts: Tensor,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    interleaved: bool = False,
) -> tuple[Tensor, Tensor]:
    """Check everything but values; allocate out and lse."""
    check = Checks("tree_attention", q.device)
    check.tensor("q", q, ("T", "Hq", "D"), FLOATS)
    check.tensor("k_cache", k_cache, ("P", "S", "H", "D"), (q.dtype,))
    check.tensor("v_cache", v_cache, ("P", "S", "H", "Dv"), (q.dtype,))
    check.tensor("items", items, ("I", 6), INT32, dense=True)
    check.tensor("pages", pages, ("N",), INT32, dense=True)
    check.tensor("entries", entries, ("E", 5), INT32, dense=True)
    check.sizes["T+1"] = check.sizes["T"] + 1
    check.tensor("row_ptr", row_ptr, ("T+1",), INT32, dense=True)
    check.tensor("positions", positions, ("T",), INT32, dense=True)
    check.tensor("shifts", shifts, ("K",), INT32, dense=True)
    check.that(shifts.shape[0] >= 1, "shifts must have at least one element (0), got none")
    attention_options(check, q, scale, window, softcap, sinks)
    check.that((cos is None) == (sin is None), "cos and sin must be given together, got one without the other")
    if cos is not None and sin is not None:
        check.tensor("cos", cos, ("K", "R"), (wide(q.dtype),), dense=True)
        check.tensor("sin", sin, ("K", "R"), (wide(q.dtype),), dense=True)
        check.that(2 * cos.shape[1] <= q.shape[2], f"cos must have 2 R <= D={q.shape[2]}, got R={cos.shape[1]}")
    out = torch.empty((*q.shape[:2], v_cache.shape[3]), dtype=q.dtype, device=q.device)
    return out, torch.empty(q.shape[:2], dtype=wide(q.dtype), device=q.device)


def _run(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    items: Tensor,
    pages: Tensor,
    entries: Tensor,
    row_ptr: Tensor,
    positions: Tensor,
    shifts: Tensor,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    interleaved: bool = False,
) -> tuple[Tensor, Tensor]:
    # fmt: off
    out, lse = _outputs(q, k_cache, v_cache, items, pages, entries, row_ptr, positions, shifts,
                        scale, window, softcap, sinks, cos, sin, interleaved)
    dispatch.find("tree_attention", q.device.type)(
        q, k_cache, v_cache, items, pages, entries, row_ptr, positions, shifts, out, lse,
        scale=q.shape[2] ** -0.5 if scale is None else scale, window=window, softcap=softcap, sinks=sinks,
        cos=cos, sin=sin, interleaved=interleaved,
    )
    # fmt: on
    return out, lse


_op = register(
    "tree_attention(Tensor q, Tensor k_cache, Tensor v_cache, Tensor items, Tensor pages, Tensor entries, "
    "Tensor row_ptr, Tensor positions, Tensor shifts, float? scale=None, int? window=None, float? softcap=None, "
    "Tensor? sinks=None, Tensor? cos=None, Tensor? sin=None, bool interleaved=False) -> (Tensor, Tensor)",
    _run,
    _outputs,
)
