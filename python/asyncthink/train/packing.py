"""Packing: an episode as a tree in one long sequence, where every token is computed once.

Rows lie one behind the other in a single sequence of T tokens. A row attends to itself, causally, and a worker with
shared context also to its organizer's first tokens; to nothing else. Gradients of a worker's loss thus reach the
organizer's keys and values, exactly as if the prefix had been computed again for that worker.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import AttentionInterface, PreTrainedModel

from asyncthink.rotary import Rotary, find_rotaries

IGNORED = -100  # label of a position without loss
ATTENTION = "asyncthink_rows"


@dataclass(frozen=True, slots=True)
class Move:
    """An ``append`` join: the K/V of tokens ``[start, stop)`` of row ``row`` stand in for those from ``at`` on here."""

    at: int
    row: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Row:
    """One agent's own tokens, and which of them it wrote itself (``learned[k]``: token k is predicted).

    The agent also sees the first ``fork_at`` tokens of the organizer's row (``parent`` is its place in the list of
    :func:`rows`; None when it sees none), which precede its own at their true positions.
    """

    role: str
    context: str
    tokens: tuple[int, ...]
    learned: tuple[bool, ...]
    parent: int | None = None
    fork_at: int = 0
    moves: tuple[Move, ...] = ()


@dataclass(frozen=True, slots=True)
class Span:
    """Row tokens ``[start, stop)`` of the sequence; they also see ``[prefix, prefix_stop)``."""

    start: int
    stop: int
    prefix: int
    prefix_stop: int


@dataclass(frozen=True, slots=True)
class Batch:
    """``tokens``, ``positions``, ``labels`` are [1, T] int64; ``labels[0, t]`` is the token after t, or IGNORED.

    K/V of token ``moved_from[j]`` stand in for those of ``moved_to[j]``, K rotated to its position (both [N] int64).
    """

    tokens: torch.Tensor
    positions: torch.Tensor
    labels: torch.Tensor
    spans: tuple[Span, ...]
    moved_from: torch.Tensor
    moved_to: torch.Tensor


def pack(episodes: Iterable[list[Row]], length: int) -> Batch:
    """Pack whole episodes until ``length`` tokens are reached; the last episode may exceed it.

    Raises ValueError when there is no episode.
    """
    rows: list[Row] = []
    spans: list[Span] = []
    moved_from: list[int] = []
    moved_to: list[int] = []
    end = 0
    for episode in episodes:
        base = len(spans)
        for row in episode:
            prefix = spans[base + row.parent].start if row.parent is not None else end
            spans.append(Span(end, end + len(row.tokens), prefix, prefix + row.fork_at))
            rows.append(row)
            end += len(row.tokens)
        for row, span in zip(episode, spans[base:], strict=True):
            for move in row.moves:
                start = spans[base + move.row].start
                moved_from += range(start + move.start, start + move.stop)
                moved_to += range(span.start + move.at, span.start + move.at + move.stop - move.start)
        if end >= length:
            break
    if not rows:
        raise ValueError("pack: expected at least one episode, got none")
    positions = [row.fork_at + k for row in rows for k in range(len(row.tokens))]
    labels = [label for row in rows for label in _labels(row)]
    tokens = [token for row in rows for token in row.tokens]
    return Batch(
        torch.tensor([tokens]),
        torch.tensor([positions]),
        torch.tensor([labels]),
        tuple(spans),
        torch.tensor(moved_from, dtype=torch.int64),
        torch.tensor(moved_to, dtype=torch.int64),
    )


def _labels(row: Row) -> list[int]:
    following = zip(row.tokens[1:], row.learned[1:], strict=True)
    return [token if learned else IGNORED for token, learned in following] + [IGNORED]


def logits_of(model: nn.Module, batch: Batch) -> torch.Tensor:
    """[1, T, vocabulary] logits of a packed batch. The model must use :data:`ATTENTION`."""
    logits: torch.Tensor = model(
        input_ids=batch.tokens, position_ids=batch.positions, use_cache=False, asyncthink_batch=batch
    ).logits
    return logits


def use_packed_attention(model: PreTrainedModel, moves: bool = False) -> None:
    """Make ``model`` attend by rows. With ``moves`` batches may hold ``append`` joins.

    Raises ValueError when the model ignores the choice, and with ``moves`` when a cached K cannot be moved
    (:class:`asyncthink.rotary.NotRotaryError` says why).
    """
    AttentionInterface.register(ATTENTION, _attend)
    model.set_attn_implementation(ATTENTION)
    if model.config._attn_implementation != ATTENTION:
        raise ValueError(f"model: {type(model).__name__} does not take another attention implementation")
    if moves:
        _find_rotaries(model)


@torch.no_grad()
def _find_rotaries(model: PreTrainedModel) -> None:
    """Ask the model how K depends on the position: one token alone at several, in each layer; see asyncthink.rotary."""
    positions = torch.tensor([[0, 1, 7, 500]])
    count = positions.shape[1]
    spans = tuple(Span(k, k + 1, k, k) for k in range(count))
    nothing = torch.empty(0, dtype=torch.int64)
    seen: list[tuple[nn.Module, torch.Tensor, torch.Tensor]] = []
    model(
        input_ids=torch.full((1, count), 3),
        position_ids=positions,
        use_cache=False,
        asyncthink_batch=Batch(positions, positions, positions, spans, nothing, nothing),
        asyncthink_seen=seen,
    )
    layers, keys, values = zip(*seen, strict=True)
    for layer, rotary in zip(layers, find_rotaries(model, keys, values, positions[0]), strict=True):
        layer.asyncthink_rotary = rotary


def _attend(
    module: nn.Module,
    query: torch.Tensor,  # [1, Hq, T, D]
    key: torch.Tensor,  # [1, H, T, D]
    value: torch.Tensor,  # [1, H, T, D]
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    *,
    asyncthink_batch: Batch,
    asyncthink_seen: list[tuple[nn.Module, torch.Tensor, torch.Tensor]] | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    for name in ("softcap", "s_aux", "sliding_window"):
        if options.get(name) is not None:
            raise ValueError(f"training: {type(module).__name__} uses {name}, which packed training does not support")
    if asyncthink_seen is not None:
        asyncthink_seen.append((module, key[0].transpose(0, 1), value[0].transpose(0, 1)))
    # float32 also within an autocast to bfloat16: the CPU's flash attention is slower in bfloat16
    group = query.shape[1] // key.shape[1]
    with torch.autocast(query.device.type, enabled=False):
        given, wide = query.dtype, torch.promote_types(query.dtype, torch.float32)
        query, key, value = (tensor.to(wide) for tensor in (query, key, value))
        key, value = _moved(module, key, value, asyncthink_batch)
        key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
        sizes = [span.stop - span.start for span in asyncthink_batch.spans]
        own = zip(*(torch.split(tensor, sizes, 2) for tensor in (query, key, value)), strict=True)
        parts = []
        for span, (q, k, v) in zip(asyncthink_batch.spans, own, strict=True):
            mask = None
            if span.prefix_stop > span.prefix:
                seen = slice(span.prefix, span.prefix_stop)
                k, v = torch.cat([key[:, :, seen], k], 2), torch.cat([value[:, :, seen], v], 2)
                mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(k.shape[2] - q.shape[2])
            parts.append(
                functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=scaling)
            )
    return torch.cat(parts, 2).transpose(1, 2).to(given), None


def _moved(
    module: nn.Module, key: torch.Tensor, value: torch.Tensor, batch: Batch
) -> tuple[torch.Tensor, torch.Tensor]:
    """key, value [1, H, T, D] with the workers' K/V in the places of the appended tokens."""
    if not batch.moved_to.numel():
        return key, value
    rotary: Rotary = module.asyncthink_rotary  # type: ignore[assignment]
    shifts = (batch.positions[0, batch.moved_to] - batch.positions[0, batch.moved_from]).to(torch.float64)
    source = key[0, :, batch.moved_from].transpose(0, 1)
    rotated = rotary.rotate(source.double(), shifts).to(key.dtype).transpose(0, 1)[None]
    key = key.index_copy(2, batch.moved_to, rotated)
    return key, value.index_copy(2, batch.moved_to, value[:, :, batch.moved_from])
