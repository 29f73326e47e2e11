"""paged_attention: decode attention over plain block tables, one query token a sequence."""

from __future__ import annotations

from typing import Any, Literal, TypedDict, Unpack, overload

import torch
from torch import Tensor

from asyncthink_kernels import dispatch
from asyncthink_kernels._checks import FLOATS, INT32, Checks, accumulate_dtype, attention_options, no_grad
from asyncthink_kernels.arguments import PagedAttention
from asyncthink_kernels.ops._library import register


class _Options(TypedDict, total=False):
    """The keywords of paged_attention, for its overloads."""

    scale: float | None
    window: int | None
    softcap: float | None
    sinks: Tensor | None
    chunk: int


@overload
def paged_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    seq_lens: Tensor,
    *,
    return_lse: Literal[False] = False,
    **options: Unpack[_Options],
) -> Tensor: ...
@overload
def paged_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    seq_lens: Tensor,
    *,
    return_lse: Literal[True],
    **options: Unpack[_Options],
) -> tuple[Tensor, Tensor]: ...
def paged_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    seq_lens: Tensor,
    *,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    chunk: int = 512,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention of one query token for each of B sequences over the sequence's own pages.

    Row b stands at position ``seq_lens[b] - 1`` and sees tokens j in [0, seq_lens[b]), with ``window`` w only the last
    w of them; token j lies in page ``block_tables[b, j // S]`` at offset ``j % S``. Logits, soft-cap, sinks, output
    and LSE are those of :func:`~asyncthink_kernels.tree_attention`, without shifts.

    Args:
        q: [B, Hq, D] queries. float32, bfloat16, float16 (float64: reference backend only).
        k_cache: [P, S, H, D], v_cache: [P, S, H, Dv]: dtype of ``q``; last dimension contiguous, other strides free.
        block_tables: [B, M] int32, contiguous. Ids beyond a sequence's length are never read.
        seq_lens: [B] int32, contiguous, each in [0, M * S]; 0 gives output 0 and LSE -inf (with a sink: LSE = sink).
        scale: default D ** -0.5.
        window: sliding window in tokens, at least 1; None: no window.
        softcap: soft limit of the logits, above 0; None: no limit.
        sinks: [Hq] float32 (float64 with float64 ``q``).
        chunk: tokens of a sequence that are computed as one piece, at least 1; changes speed and rounding only.
        return_lse: also return the log-sum-exp.

    Returns:
        out [B, Hq, Dv] in the dtype of ``q``; with ``return_lse`` also lse [B, Hq] float32 (float64 with float64 q).

    Raises:
        ValueError: a shape, dtype, device, stride or option that does not fit, a length or page id out of range. On a
            GPU lengths and page ids are read only under ``ASYNCTHINK_CHECK=1``.

    Source: PagedAttention (arXiv 2309.06180, section 4.1), split along the sequence as in Flash-Decoding.

    >>> import torch
    >>> from asyncthink_kernels import paged_attention
    >>> k_cache, v_cache = torch.zeros(2, 4, 1, 16), torch.arange(8.0).view(2, 4, 1, 1).expand(2, 4, 1, 16).contiguous()
    >>> tables, lens = torch.tensor([[1]], dtype=torch.int32), torch.tensor([3], dtype=torch.int32)
    >>> paged_attention(torch.ones(1, 1, 16), k_cache, v_cache, tables, lens)[0, 0, 0].item()
    5.0
    """
    no_grad("paged_attention", q=q, k_cache=k_cache, v_cache=v_cache)
    out, lse = _op(q, k_cache, v_cache, block_tables, seq_lens, scale, window, softcap, sinks, chunk)
    return (out, lse) if return_lse else out


def _outputs(args: PagedAttention) -> tuple[Tensor, Tensor]:
    """Check everything but values; allocate out and lse."""
    q = args.q
    check = Checks("paged_attention", q.device)
    check.tensor("q", q, ("B", "Hq", "D"), FLOATS)
    check.tensor("k_cache", args.k_cache, ("P", "S", "H", "D"), (q.dtype,))
    check.tensor("v_cache", args.v_cache, ("P", "S", "H", "Dv"), (q.dtype,))
    check.tensor("block_tables", args.block_tables, ("B", "M"), INT32, dense=True)
    check.tensor("seq_lens", args.seq_lens, ("B",), INT32, dense=True)
    attention_options(check, q, args.scale, args.window, args.softcap, args.sinks)
    check.that(args.chunk >= 1, f"chunk must be at least 1, got {args.chunk}")
    out = torch.empty((*q.shape[:2], args.v_cache.shape[3]), dtype=q.dtype, device=q.device)
    return out, torch.empty(q.shape[:2], dtype=accumulate_dtype(q.dtype), device=q.device)


def _run(*given: Any) -> tuple[Tensor, Tensor]:
    args = PagedAttention(*given)
    out, lse = _outputs(args)
    dispatch.find("paged_attention", args.q.device.type)(args, out, lse)
    return out, lse


def _fake(*given: Any) -> tuple[Tensor, Tensor]:
    return _outputs(PagedAttention(*given))


_op = register(
    "paged_attention(Tensor q, Tensor k_cache, Tensor v_cache, Tensor block_tables, Tensor seq_lens, "
    "float? scale=None, int? window=None, float? softcap=None, Tensor? sinks=None, int chunk=512) -> (Tensor, Tensor)",
    _run,
    _fake,
)
