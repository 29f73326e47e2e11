"""Draws one token for each row of logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from asyncthink.episode.params import SamplingParams
from asyncthink_kernels import sample

__all__ = ["SamplingParams", "draw", "drawable"]


def drawable(logits: Tensor) -> list[bool]:
    """For each row of logits [N, V], whether a token can be drawn: no NaN, and at least one finite value.

    >>> drawable(torch.tensor([[0.0, -torch.inf], [0.0, torch.nan], [-torch.inf, -torch.inf]]))
    [True, False, False]
    """
    highest = logits.amax(-1)  # NaN where a row holds one
    return torch.isfinite(highest).tolist()


def draw(
    logits: Tensor, params: Sequence[SamplingParams], agents: Sequence[int], positions: Sequence[int]
) -> tuple[list[int], list[float]]:
    """One token for each row by :func:`asyncthink_kernels.sample`, with a random number for seed, agent and position.

    A draw depends on its own row and these three numbers alone: not on the batch, the order of agents or earlier draws.

    Args:
        logits: [N, V] float32, bfloat16, float16, or float64, which is rounded to float32.
        params: N parameter sets.
        agents: N numbers, those of the agents in their episodes.
        positions: N numbers, how many tokens each agent has drawn so far.

    Returns:
        (tokens, logprobs): N each. A log-probability is natural, under softmax(logits / temperature) before the
        filters (temperature 1 for a greedy row): what a trainer recomputes from the logits.

    Raises:
        ValueError: a row's logits hold NaN, or no finite value.

    Example:
        >>> tokens, logprobs = draw(torch.zeros(2, 100), [SamplingParams(seed=3)] * 2, [0, 0], [5, 5])
        >>> tokens[0] == tokens[1], round(logprobs[0], 4)
        (True, -4.6052)
    """
    device = logits.device
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
