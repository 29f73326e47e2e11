"""tree_attention: one step's attention of all branches over the paged tree."""

from __future__ import annotations

from typing import Any, Literal, TypedDict, Unpack, overload

import torch
from torch import Tensor

from asyncthink_kernels import dispatch
from asyncthink_kernels._checks import FLOATS, Checks, accumulate_dtype, attention_options, no_grad
from asyncthink_kernels.arguments import TreeAttention
from asyncthink_kernels.ops._library import register
from asyncthink_kernels.plan import TreePlan


class _Options(TypedDict, total=False):
    """The keywords of tree_attention, for its overloads."""

    scale: float | None
    window: int | None
    softcap: float | None
    sinks: Tensor | None
    cos: Tensor | None
    sin: Tensor | None
    interleaved: bool


@overload
def tree_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    plan: TreePlan,
    *,
    return_lse: Literal[False] = False,
    **options: Unpack[_Options],
) -> Tensor: ...
@overload
def tree_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    plan: TreePlan,
    *,
    return_lse: Literal[True],
    **options: Unpack[_Options],
) -> tuple[Tensor, Tensor]: ...
def tree_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    plan: TreePlan,
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

    The plan (:class:`~asyncthink_kernels.TreePlan`) says which tokens a row sees: an *entry* gives a row the tokens
    [begin, end) of an *item*. Token j of an item stands at position ``item.position + j + shift`` in the row's
    branch; with ``window`` w the row sees it only if ``0 <= positions[row] - that < w``. A row that sees nothing has
    output 0 and LSE -inf (with a sink: LSE = sink). Unseen tokens never affect a row, even when they hold NaN.

    Args:
        q: [T, Hq, D] queries, rotary embedding applied. float32, bfloat16, float16 (float64: reference backend only).
        k_cache: [P, S, H, D] keys of one layer, dtype of ``q``.
        v_cache: [P, S, H, Dv] values of one layer, dtype of ``q``.
        plan: of T rows and K shifts, for a cache of at most P pages of S slots, on the device of ``q``.
        scale: default D ** -0.5.
        window: sliding window in tokens, at least 1; None: no window.
        softcap: soft limit of the logits, above 0; None: no limit.
        sinks: [Hq] float32 (float64 with float64 ``q``): a logit for each head in the denominator alone.
        cos, sin: [K, R] float32 (float64 with float64 ``q``), 2R <= D: of the angle ``shifts[k] * inv_freq``; both or
            neither. None: shifts move positions only (layers without rotary embedding).
        interleaved: rotary pairs are dims (2i, 2i + 1) rather than (i, i + R).
        return_lse: also return the log-sum-exp.

    The last dimension of q, k_cache and v_cache is contiguous, other strides are free; the rest are contiguous. The
    plan was checked when it was made: here only its sizes are compared with the other arguments.

    Returns:
        out [T, Hq, Dv] in the dtype of ``q``; with ``return_lse`` also lse [T, Hq], natural log, float32 (float64 with
        float64 ``q``).

    Raises:
        ValueError: a shape, dtype, device, stride or option that does not fit, or a plan for other sizes.

    Source: shared-prefix decoding with softmax merge, Hydragen (arXiv 2402.05099, section 3.2); the rotation of the
    query instead of cached keys follows from RoPE being orthogonal (RoFormer, arXiv 2104.09864, section 3.2).

    Two branches of one token share four tokens in page 1; the second row sees only three of them:

    >>> import torch
    >>> from asyncthink_kernels import TreePlan, tree_attention
    >>> k_cache, v_cache = torch.zeros(2, 4, 1, 16), torch.arange(8.0).view(2, 4, 1, 1).expand(2, 4, 1, 16).contiguous()
    >>> int32 = lambda rows: torch.tensor(rows, dtype=torch.int32)
    >>> plan = TreePlan(
    ...     items=int32([[0, 0, 4, 0, 0, 2]]), pages=int32([1]), entries=int32([[0, 0, 4, 0, 0], [1, 0, 3, 0, 1]]),
    ...     row_ptr=int32([0, 1, 2]), positions=int32([4, 3]), shifts=int32([0]), num_pages=2, page_size=4)
    >>> tree_attention(torch.ones(2, 1, 16), k_cache, v_cache, plan)[:, 0, 0].tolist()
    [5.5, 5.0]
    """
    no_grad("tree_attention", q=q, k_cache=k_cache, v_cache=v_cache)
    if not plan.fits(q, k_cache):
        raise ValueError(_misfit(q, k_cache, plan))
    out, lse = _op(q, k_cache, v_cache, *plan.tensors, scale, window, softcap, sinks, cos, sin, interleaved)
    return (out, lse) if return_lse else out


def _misfit(q: Tensor, k_cache: Tensor, plan: TreePlan) -> str:
    return (
        f"tree_attention: for this plan q must be [T={plan.rows}, Hq, D] on {plan.items.device} and k_cache "
        f"[P >= {plan.num_pages}, S={plan.page_size}, H, D], "
        f"got {list(q.shape)} on {q.device} and {list(k_cache.shape)}"
    )


def _outputs(args: TreeAttention) -> tuple[Tensor, Tensor]:
    """Check all but the plan; allocate out and lse."""
    q = args.q
    check = Checks("tree_attention", q.device)
    check.tensor("q", q, ("T", "Hq", "D"), FLOATS)
    check.tensor("k_cache", args.k_cache, ("P", "S", "H", "D"), (q.dtype,))
    check.tensor("v_cache", args.v_cache, ("P", "S", "H", "Dv"), (q.dtype,))
    attention_options(check, q, args.scale, args.window, args.softcap, args.sinks)
    cos, sin, accumulate = args.cos, args.sin, accumulate_dtype(q.dtype)
    check.that((cos is None) == (sin is None), "cos and sin must be given together, got one without the other")
    if cos is not None and sin is not None:
        check.sizes["K"] = args.shifts.shape[0]
        check.tensor("cos", cos, ("K", "R"), (accumulate,), dense=True)
        check.tensor("sin", sin, ("K", "R"), (accumulate,), dense=True)
        check.that(2 * cos.shape[1] <= q.shape[2], f"cos must have 2 R <= D={q.shape[2]}, got R={cos.shape[1]}")
    out = torch.empty((*q.shape[:2], args.v_cache.shape[3]), dtype=q.dtype, device=q.device)
    return out, torch.empty(q.shape[:2], dtype=accumulate, device=q.device)


def _run(*given: Any) -> tuple[Tensor, Tensor]:
    args = TreeAttention(*given)
    out, lse = _outputs(args)
    dispatch.find("tree_attention", args.q.device.type)(args, out, lse)
    return out, lse


def _fake(*given: Any) -> tuple[Tensor, Tensor]:
    return _outputs(TreeAttention(*given))


_op = register(
    "tree_attention(Tensor q, Tensor k_cache, Tensor v_cache, Tensor items, Tensor pages, Tensor entries, "
    "Tensor row_ptr, Tensor positions, Tensor shifts, float? scale=None, int? window=None, float? softcap=None, "
    "Tensor? sinks=None, Tensor? cos=None, Tensor? sin=None, bool interleaved=False) -> (Tensor, Tensor)",
    _run,
    _fake,
)
