"""Drawing one token per row: the parameters, and the op that draws with them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from asyncthink_kernels import sample


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are drawn, and when an agent or an episode must stop.

    Args:
        temperature: logits are divided by it; 0 takes the most likely token.
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the smallest set of most likely tokens whose probability reaches p; 1 keeps all.
        min_p: keep tokens at least ``min_p`` times as likely as the most likely one; 0 keeps all.
        max_tokens: tokens that one agent may draw.
        max_episode_tokens: tokens that all agents of an episode may draw together; None for no limit.
        stop: an agent that writes one of these strings ends there.
        seed: key of the random streams. The same seed gives the same episode whatever else is in the batch.
        timeout: seconds after its admission when an episode is ended; None for no limit.

    Raises:
        ValueError: a value outside its range; temperature, top_p and min_p are rounded to float32 when they are used.

    Example:
        >>> SamplingParams(temperature=0.8, top_p=0.95, seed=7).with_seed(8).seed
        8
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    max_tokens: int = 1024
    max_episode_tokens: int | None = None
    stop: tuple[str, ...] = ()
    seed: int = 0
    timeout: float | None = None

    def __post_init__(self) -> None:
        _expect(0 <= _single(self.temperature) < math.inf, "temperature", ">= 0, finite", self.temperature)
        _expect(self.top_k >= 0, "top_k", ">= 0 (0 keeps all)", self.top_k)
        _expect(0 < _single(self.top_p) <= 1, "top_p", "in (0, 1]", self.top_p)
        _expect(0 <= _single(self.min_p) <= 1, "min_p", "in [0, 1]", self.min_p)
        _expect(self.max_tokens >= 1, "max_tokens", ">= 1", self.max_tokens)
        _expect(
            self.max_episode_tokens is None or self.max_episode_tokens >= 1,
            "max_episode_tokens",
            ">= 1 or None",
            self.max_episode_tokens,
        )
        _expect(not isinstance(self.stop, str) and all(self.stop), "stop", "a tuple of non-empty strings", self.stop)
        _expect(0 <= self.seed < 2**64, "seed", "in [0, 2**64)", self.seed)
        _expect(self.timeout is None or self.timeout > 0, "timeout", "> 0 seconds or None", self.timeout)

    def with_seed(self, seed: int) -> SamplingParams:
        """These parameters with another seed."""
        return dataclasses.replace(self, seed=seed)


def _expect(ok: bool, name: str, expected: str, got: object) -> None:
    if not ok:
        raise ValueError(f"{name}: expected {expected}, got {got!r}")


def _single(value: float) -> float:
    """Rounded to float32."""
    return torch.tensor(value, dtype=torch.float32, device="cpu").item()


def draw(
    logits: Tensor, params: Sequence[SamplingParams], agents: Sequence[int], positions: Sequence[int]
) -> tuple[list[int], list[float]]:
    """One token per row by :func:`asyncthink_kernels.sample`; its random number is keyed by seed, agent and position.

    A draw depends on nothing but its own row and these three numbers: not on the batch, the order of agents or what
    was drawn before.

    Args:
        logits: [N, V] float32, bfloat16, float16, or float64, which is rounded to float32.
        params: N parameter sets.
        agents: N numbers of agents in their episodes.
        positions: N numbers of tokens that the agents have drawn.

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
    seeds = [p.seed - 2**64 if p.seed >= 2**63 else p.seed for p in params]  # the same 64 bits
    numbers = torch.tensor([seeds, agents, positions], dtype=torch.int64, device=device)
    top_k = torch.tensor([min(p.top_k, 2**31 - 1) for p in params], dtype=torch.int32, device=device)
    shares = [[p.temperature for p in params], [p.top_p for p in params], [p.min_p for p in params]]
    temperature, top_p, min_p = torch.tensor(shares, dtype=torch.float32, device=device)
    drawn, logprobs = sample(logits, numbers[0], numbers[1], numbers[2], temperature, top_k, top_p, min_p)
    tokens = drawn.tolist()
    if -1 in tokens:  # a GPU says it so
        raise ValueError(f"logits: expected a finite maximum, got none in row {tokens.index(-1)}")
    return tokens, logprobs.tolist()
