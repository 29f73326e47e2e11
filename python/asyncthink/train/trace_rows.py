"""A packed batch run one row a trace: for models that would mix the rows of one sequence, as by recurrent layers.

Each row of the batch is a sequence of its own, prefix and all, so a shared prefix is computed once for each row that
sees it. Rows are padded at their end, which changes nothing before it in a model that looks back only.

Letters: T tokens of the batch, R rows that run together, L tokens of the longest of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from asyncthink.model.checks import probe_tokens
from asyncthink.model.tolerance import difference, limit
from asyncthink.train.packing import Batch, Span
from asyncthink.train.sharding import is_sharded

STATES = "the recurrent layers of this model would mix packed rows"
_WASTE = 1.25  # computed tokens for each token of a group, at most


@dataclass(frozen=True, slots=True)
class RowsOutput:
    """The part of a model's output that training reads, in the order of the batch; what it lacks is None."""

    logits: Tensor | None  # [1, T, V]
    last_hidden_state: Tensor | None  # [1, T, hidden size]


def run_rows(model: nn.Module, batch: Batch, **options: Any) -> RowsOutput:
    """The output of a model, or of its base model, for a batch. Raises ValueError for one with ``append`` joins."""
    if batch.moved_to.numel():
        raise ValueError("batch: expected exact joins alone for a model that runs one row a trace, got moved tokens")
    parts: dict[str, dict[int, Tensor]] = {"logits": {}, "last_hidden_state": {}}
    # Processes that share a model must run it equally often: one pass each, whatever their rows.
    sharded = any(is_sharded(module) for module in model.modules())
    for group in [list(range(len(batch.spans)))] if sharded else _groups(batch.spans):
        contexts = [_context(batch.tokens[0], batch.spans[number]) for number in group]
        longest = max(map(len, contexts))
        padded = torch.stack([torch.cat([c, c[-1:].expand(longest - len(c))]) for c in contexts])  # [R, L]
        output = model(input_ids=padded, use_cache=False, return_dict=True, **options)
        for name, made in parts.items():
            got = getattr(output, name, None)
            if got is not None:
                for row, number, context in zip(got, group, contexts, strict=True):
                    span = batch.spans[number]
                    made[number] = row[len(context) - (span.stop - span.start) : len(context)]
    whole = {name: _in_order(made) for name, made in parts.items()}
    return RowsOutput(**whole)


def _groups(spans: Sequence[Span]) -> Iterator[list[int]]:
    """Numbers of rows of similar length, the longest ones first."""
    lengths = [span.position + span.stop - span.start for span in spans]
    group: list[int] = []
    for number in sorted(range(len(spans)), key=lambda row: -lengths[row]):
        together = [*group, number]
        if group and lengths[together[0]] * len(together) > _WASTE * sum(lengths[row] for row in together):
            yield group
            together = [number]
        group = together
    yield group


def _context(tokens: Tensor, span: Span) -> Tensor:
    """A row's prefix, and its own tokens."""
    return torch.cat([tokens[first:last] for first, last in (*span.seen, (span.start, span.stop))])


def _in_order(made: dict[int, Tensor]) -> Tensor | None:
    return torch.cat([made[number] for number in sorted(made)])[None] if made else None


def forked(model: nn.Module) -> Batch:
    """A small batch on the model's device: a parent, and a child that sees the first three tokens of it."""
    device = next(model.parameters()).device
    tokens = torch.tensor([probe_tokens(model, 11)], device=device)
    positions = torch.tensor([[*range(7), *range(3, 7)]], device=device)
    nothing = torch.empty(0, dtype=torch.int64, device=device)
    return Batch(tokens, positions, tokens, (Span(0, 7), Span(7, 11, ((0, 3),))), nothing, nothing)


@torch.no_grad()
def require_causal(model: nn.Module) -> None:
    """Raises ValueError where the model's logits of a token depend on those behind it."""
    training = model.training
    model.eval()
    try:
        tokens = forked(model).tokens[:, :7]
        whole, head = (model(input_ids=part, use_cache=False).logits[0].float() for part in (tokens, tokens[:, :4]))
    finally:
        model.train(training)
    apart = difference(head, whole[:4])
    if not apart <= limit(next(model.parameters()).dtype, whole[-1], whole[0]):
        raise ValueError(
            f"model: {type(model).__name__} is not causal: logits of a token depend on those behind it "
            f"(relative difference {apart:.1e})"
        )
