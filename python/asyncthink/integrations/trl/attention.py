"""Our packed attention under TRL's tree packing, where FlashAttention 3 does not run."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary
from transformers import PreTrainedModel

from asyncthink.model.registry import install, register
from asyncthink.train.packed_attention import PackedAttention, attend_rows
from asyncthink.train.packing import Batch, Span

ATTENTION = "asyncthink_trl_tree"

#: Masks are made once a pass and shared by its layers: they live as long as the pass's boundaries of segments.
_packed: Any = WeakTensorKeyDictionary()


def use_tree_attention(model: PreTrainedModel) -> None:
    """Make the model of an ``AsyncGRPOTrainer`` attend with our packed attention, on a CPU row by row.

    TRL loads it with "tree_fa3", FlashAttention 3 over a prefix trie of samples, which needs a GPU. Ours has a name of
    its own and takes the same keywords; call this before training. Raises ValueError for a model that does not take
    another attention.

    >>> use_tree_attention(trainer.model)                                                         # doctest: +SKIP
    """
    register(ATTENTION, _attention)
    install(model, ATTENTION)


def tree_spans(kv_index: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor) -> tuple[Span, ...]:
    """The segments of TRL's packed row as spans with what they see.

    Args:
        kv_index: [K] int64, the tokens on the path from the root to each segment's end, one path after another.
        cu_seqlens_q: [S + 1] int32; segment s is tokens ``[cu_seqlens_q[s], cu_seqlens_q[s + 1])``.
        cu_seqlens_k: [S + 1] int32, where the path of each segment begins in ``kv_index``.

    >>> made = tree_spans(torch.tensor([0, 1, 0, 1, 2, 0, 1, 3, 4]), torch.tensor([0, 2, 3, 5]),
    ...                   torch.tensor([0, 2, 5, 9]))
    >>> [(span.start, span.stop, span.seen) for span in made]
    [(0, 2, ()), (2, 3, ((0, 2),)), (3, 5, ((0, 2),))]
    """
    index = kv_index.cpu().numpy()
    own, paths = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    spans = []
    for start, stop, first, last in zip(own, own[1:], paths, paths[1:], strict=False):
        prefix = index[first : last - (stop - start)]
        parts = np.split(prefix, np.flatnonzero(np.diff(prefix) != 1) + 1) if len(prefix) else []
        spans.append(Span(start, stop, tuple((int(part[0]), int(part[-1]) + 1) for part in parts)))
    return tuple(spans)


def _rows(kv_index: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor) -> PackedAttention:
    rows = _packed.get(cu_seqlens_q)
    if rows is None:
        spans = tree_spans(kv_index, cu_seqlens_q, cu_seqlens_k)
        positions = [torch.arange(span.position, span.position + span.stop - span.start) for span in spans]
        tokens = torch.cat(positions)[None].to(cu_seqlens_q.device)  # attention asks for positions, not for tokens
        nothing = torch.empty(0, dtype=torch.int64, device=tokens.device)
        rows = PackedAttention(Batch(tokens, tokens, tokens, spans, nothing, nothing))
        _packed[cu_seqlens_q] = rows
    made: PackedAttention = rows
    return made


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    tree_kv_index: Tensor,
    tree_cu_seqlens_q: Tensor,
    tree_cu_seqlens_k: Tensor,
    tree_max_seqlen_q: int,
    tree_max_seqlen_k: int,
    **options: Any,
) -> tuple[Tensor, None]:
    rows = _rows(tree_kv_index, tree_cu_seqlens_q, tree_cu_seqlens_k)
    return attend_rows(module, query, key, value, attention_mask, asyncthink_rows=rows, **options)
