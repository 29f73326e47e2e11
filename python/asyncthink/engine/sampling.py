"""Draws one token for each row of logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from asyncthink.episode.params import SamplingParams
from asyncthink_kernels import sample

__all__ = ["SamplingParams", "draw", "drawable", "forbid"]


def drawable(logits: Tensor) -> list[bool]:
    """For each row of logits [N, V], whether a token can be drawn: no NaN, and at least one finite value.

    >>> drawable(torch.tensor([[0.0, -torch.inf], [0.0, torch.nan], [-torch.inf, -torch.inf]]))
    [True, False, False]
    """
    highest = logits.amax(-1)  # NaN where a row holds one
    return torch.isfinite(highest).tolist()


def forbid(logits: Tensor, masks: Tensor, rows: Sequence[int] | None = None) -> Tensor:
    """A copy of logits [N, V] in which tokens whose bit is 0 are -inf, so that softmax gives them no probability.

    Args:
        logits: [N, V], any floating dtype, which is kept.
        masks: [M, ceil(V / 32)] int32; bit ``v % 32`` of word ``v // 32`` is 1 where token v may be drawn. Bits from
            V on mean nothing.
        rows: M numbers of the rows that have a mask, in the order of ``masks``; None: all N. Others stay as they are.

    Raises:
        ValueError: masks of another shape or dtype, or one that forbids all V tokens.

    >>> forbid(torch.zeros(2, 3), torch.tensor([[0b101]], dtype=torch.int32), [1]).tolist()
    [[0.0, 0.0, 0.0], [0.0, -inf, 0.0]]
    """
    count, vocabulary = logits.shape
    rows = range(count) if rows is None else rows
    expected = (len(rows), -(-vocabulary // 32))
    if masks.dtype != torch.int32 or masks.shape != expected:
        raise ValueError(f"masks: expected int32 {list(expected)}, got {masks.dtype} {list(masks.shape)}")
    used = masks.clone()
    if spare := -vocabulary % 32:  # the last word's bits from V on
        used[:, -1] &= 2 ** (32 - spare) - 1
    if not (drawable := used.any(1)).all():
        row = rows[drawable.tolist().index(False)]
        raise ValueError(f"masks: expected an allowed token in each row, got none in row {row}")
    codes = used.to(logits.device).view(torch.uint8)
    of_byte = (torch.arange(256, device=logits.device)[:, None] >> torch.arange(8, device=logits.device)) & 1 == 0
    forbidden = of_byte[codes.int()].flatten(1)[:, :vocabulary]
    if len(rows) == count and list(rows) == list(range(count)):
        return logits.masked_fill(forbidden, -torch.inf)
    chosen = torch.tensor(rows, dtype=torch.int64, device=logits.device)
    return logits.index_copy(0, chosen, logits[chosen].masked_fill_(forbidden, -torch.inf))


def draw(
    logits: Tensor,
    params: Sequence[SamplingParams],
    agents: Sequence[int],
    positions: Sequence[int],
    masks: Tensor | None = None,
) -> tuple[list[int], list[float]]:
    """One token for each row by :func:`asyncthink_kernels.sample`, with a random number for seed, agent and position.

    A draw depends on its own row and these three numbers alone: not on the batch, the order of agents or earlier draws.

    Args:
        logits: [N, V] float32, bfloat16, float16, or float64, which is rounded to float32.
        params: N parameter sets.
        agents: N numbers, those of the agents in their episodes.
        positions: N numbers, how many tokens each agent has drawn so far.
        masks: [N, ceil(V / 32)] int32, the tokens that may be drawn (:func:`forbid`); None: all.

    Returns:
        (tokens, logprobs): N each. A log-probability is natural, under softmax(logits / temperature) before the
        filters (temperature 1 for a greedy row): what a trainer recomputes from the logits. Under a mask the softmax
        is over the allowed tokens alone.

    Raises:
        ValueError: a row's logits hold NaN, or no finite value that the mask allows.

    Example:
        >>> tokens, logprobs = draw(torch.zeros(2, 100), [SamplingParams(seed=3)] * 2, [0, 0], [5, 5])
        >>> tokens[0] == tokens[1], round(logprobs[0], 4)
        (True, -4.6052)
    """
    device = logits.device
    logits = logits if masks is None else forbid(logits, masks)
    logits = logits.float() if logits.dtype == torch.float64 else logits
    seeds = [p.seed - 2**64 if p.seed >= 2**63 else p.seed for p in params]  # the same 64 bits, signed
    numbers = torch.tensor([seeds, agents, positions], dtype=torch.int64, device=device)
    top_k = torch.tensor([min(p.top_k, 2**31 - 1) for p in params], dtype=torch.int32, device=device)
    shares = [[p.temperature for p in params], [p.top_p for p in params], [p.min_p for p in params]]
    temperature, top_p, min_p = torch.tensor(shares, dtype=torch.float32, device=device)
    drawn, logprobs = sample(logits, numbers[0], numbers[1], numbers[2], temperature, top_k, top_p, min_p)
    tokens = drawn.tolist()
    if -1 in tokens:  # how the GPU kernel reports such a row
        raise ValueError(f"logits: expected a finite maximum, got none in row {tokens.index(-1)}")
    return tokens, logprobs.tolist()
