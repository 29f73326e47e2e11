"""Drawing one token per row: parameters, counter-based random numbers, and the draw itself."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF


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
        ValueError: a value outside its range.

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
        _expect(self.temperature >= 0 and math.isfinite(self.temperature), "temperature", ">= 0", self.temperature)
        _expect(self.top_k >= 0, "top_k", ">= 0 (0 keeps all)", self.top_k)
        _expect(0 < self.top_p <= 1, "top_p", "in (0, 1]", self.top_p)
        _expect(0 <= self.min_p <= 1, "min_p", "in [0, 1]", self.min_p)
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


def uniform(seeds: Sequence[int], agents: Sequence[int], positions: Sequence[int]) -> np.ndarray:
    """u[r] in [0, 1), float64: Philox-4x32-10 with key ``seeds[r]`` and counter ``(positions[r], agents[r], 0, 0)``.

    53 bits are taken from the first two output words. Counter-based, so a draw depends on nothing but its own three
    numbers: not on the batch, the order of agents or what was drawn before (Salmon et al., SC 2011).

    Example:
        >>> bool(uniform([1], [0], [5])[0] == uniform([9, 1], [3, 0], [2, 5])[1])
        True
    """
    seed = np.asarray(seeds, dtype=np.uint64)
    key = [seed & np.uint64(_MASK), seed >> np.uint64(32)]
    zero = np.zeros(len(seed), dtype=np.uint64)
    c = [np.asarray(positions, dtype=np.uint64), np.asarray(agents, dtype=np.uint64), zero, zero]
    mask, shift = np.uint64(_MASK), np.uint64(32)
    for _ in range(10):
        p0, p1 = np.uint64(_MULTIPLIERS[0]) * c[0], np.uint64(_MULTIPLIERS[1]) * c[2]
        c = [(p1 >> shift) ^ c[1] ^ key[0], p1 & mask, (p0 >> shift) ^ c[3] ^ key[1], p0 & mask]
        key = [(key[0] + np.uint64(_WEYL[0])) & mask, (key[1] + np.uint64(_WEYL[1])) & mask]
    bits = (c[0] << np.uint64(21)) ^ (c[1] >> np.uint64(11))
    return bits.astype(np.float64) * 2.0**-53


def draw(logits: Tensor, params: Sequence[SamplingParams], u: np.ndarray) -> tuple[list[int], list[float]]:
    """One token per row: the first v with ``cumsum(p)[v] > u * sum(p)``, p the filtered softmax(logits / temperature).

    Filters apply in the order top-k, top-p, min-p, on the distribution after temperature. Each row is computed from
    its own logits alone.

    Args:
        logits: [N, V] float32.
        params: N parameter sets.
        u: [N] uniform numbers in [0, 1), from :func:`uniform`.

    Returns:
        (tokens, logprobs): N each. A log-probability is natural, under softmax(logits / temperature) before the
        filters (temperature 1 for a greedy row): what a trainer recomputes from the logits.

    Raises:
        ValueError: a row's logits hold NaN, or no finite value.
    """
    logits = logits.float()
    peak = logits.amax(dim=-1)
    if not bool(torch.isfinite(peak).all()):
        row = int((~torch.isfinite(peak)).nonzero()[0])
        raise ValueError(f"logits: expected finite values, got maximum {float(peak[row])} in row {row}")
    heat = torch.tensor([p.temperature or 1.0 for p in params], dtype=torch.float32, device=logits.device)
    logp = torch.log_softmax(logits / heat[:, None], dim=-1)
    tokens = logp.argmax(dim=-1)
    warm = [row for row, p in enumerate(params) if p.temperature > 0]
    if warm:
        rows = torch.tensor(warm, device=logits.device)
        p = _filtered(logp[rows].exp().double(), [params[row] for row in warm])
        cdf = p.cumsum(dim=-1)
        point = torch.from_numpy(u[warm]).to(logits.device) * cdf[:, -1]
        # Not past the last token that may be drawn, should u * total round up to the total.
        last = p.shape[-1] - 1 - (p.flip(-1) > 0).int().argmax(dim=-1)
        tokens[rows] = torch.minimum(torch.searchsorted(cdf, point[:, None], right=True)[:, 0], last)
    drawn = logp.gather(1, tokens[:, None])[:, 0]
    return tokens.tolist(), drawn.tolist()


def _filtered(p: Tensor, params: Sequence[SamplingParams]) -> Tensor:
    """p [N, V] float64 with the tokens outside top-k, top-p and min-p set to 0 (not renormalised)."""
    size = p.shape[-1]
    if any(0 < q.top_k < size or q.top_p < 1 for q in params):
        ordered, order = p.sort(dim=-1, descending=True, stable=True)
        k = torch.tensor([q.top_k if q.top_k else size for q in params], device=p.device)
        ordered = ordered.masked_fill(torch.arange(size, device=p.device)[None] >= k[:, None], 0.0)
        top_p = torch.tensor([q.top_p for q in params], dtype=p.dtype, device=p.device)[:, None]
        before = ordered.cumsum(dim=-1) - ordered
        outside = (before >= top_p * ordered.sum(dim=-1, keepdim=True)) & (top_p < 1)
        p = torch.zeros_like(p).scatter(1, order, ordered.masked_fill(outside, 0.0))
    if any(q.min_p > 0 for q in params):
        min_p = torch.tensor([q.min_p for q in params], dtype=p.dtype, device=p.device)[:, None]
        p = p.masked_fill(p < min_p * p.amax(dim=-1, keepdim=True), 0.0)
    return p
