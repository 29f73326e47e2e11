"""The GRPO loss (arXiv 2402.03300) on tree-packed episodes: organizer and workers are one unit with one advantage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Literal

import torch
from torch import Tensor

from asyncthink.episode.records import Episode

Normaliser = Literal["token", "episode", "constant"]
NORMALISERS = ("token", "episode", "constant")


@dataclass(frozen=True, slots=True)
class Objective:
    """What is maximised.

    For each drawn token t of an episode with advantage A, with ``r = exp(logp - old)``::

        L_t = min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) - kl * (exp(ref - logp) - (ref - logp) - 1)

    ``normaliser`` says how the L_t of a step become one number: "token": their mean over all tokens of the step
    (DAPO, arXiv 2503.14476); "episode": the mean over episodes of each episode's mean; "constant": the mean over
    episodes of (sum / ``constant``) (Dr. GRPO, arXiv 2503.20783).

    Raises ValueError for numbers outside their range.
    """

    clip_low: float = 0.2
    clip_high: float = 0.28
    kl: float = 0.0
    normaliser: Normaliser = "token"
    constant: float = 1024.0

    def __post_init__(self) -> None:
        for name in ("clip_low", "clip_high", "kl"):
            if not 0 <= getattr(self, name) < inf:
                raise ValueError(f"{name}: expected at least 0, got {getattr(self, name)}")
        if self.normaliser not in NORMALISERS:
            raise ValueError(f"normaliser: expected one of {', '.join(NORMALISERS)}, got {self.normaliser!r}")
        if not 0 < self.constant < inf:
            raise ValueError(f"constant: expected more than 0, got {self.constant}")

    def weights(self, episodes: Sequence[Episode]) -> list[float]:
        """What a token of each episode weighs in the step's sum, before division by the number of processes' total.

        "token": 1; "episode": 1 / tokens of the episode; "constant": 1 / ``constant``.
        """
        if self.normaliser == "token":
            return [1.0] * len(episodes)
        if self.normaliser == "constant":
            return [1.0 / self.constant] * len(episodes)
        return [1.0 / max(1, episode.total_tokens) for episode in episodes]

    def divisor(self, episodes: Sequence[Episode]) -> float:
        """By what the step's weighted sum is divided; summed over processes where there are several."""
        if self.normaliser == "token":
            return float(sum(episode.total_tokens for episode in episodes))
        return float(len(episodes))


@dataclass(frozen=True, slots=True)
class Terms:
    """Sums over the learned tokens of one packed batch; ``loss`` [] carries the gradient (still to be divided)."""

    loss: Tensor
    tokens: int
    clipped: float
    kl: float
    off_policy: float  # sum of |logp - old|: how far the trainer is from what the sampler drew with


def grpo_terms(
    objective: Objective,
    logp: Tensor,
    old: Tensor,
    advantage: Tensor,
    weight: Tensor,
    reference: Tensor | None = None,
) -> Terms:
    """The loss of a packed batch of N drawn tokens, as a weighted sum.

    Args:
        logp: [N] log-probabilities under the live weights, with gradient.
        old: [N] those the sampler drew with.
        advantage, weight: [N], of each token's episode (:meth:`Objective.weights`).
        reference: [N] under the reference model; needed where ``objective.kl`` > 0.

    Raises:
        ValueError: shapes that differ, or no reference for a KL term.
    """
    for name, tensor in (("old", old), ("advantage", advantage), ("weight", weight), ("reference", reference)):
        if tensor is not None and tensor.shape != logp.shape:
            raise ValueError(f"{name}: expected shape {list(logp.shape)}, got {list(tensor.shape)}")
    if objective.kl > 0 and reference is None:
        raise ValueError(f"reference: expected log-probabilities for a KL weight of {objective.kl}, got None")
    apart = logp - old
    ratio = apart.exp()
    bounded = ratio.clamp(1 - objective.clip_low, 1 + objective.clip_high)
    gain = torch.minimum(ratio * advantage, bounded * advantage)
    divergence = torch.zeros_like(logp)
    if reference is not None:
        divergence = torch.expm1(reference - logp) - (reference - logp)
        gain = gain - objective.kl * divergence
    clipped = (bounded * advantage < ratio * advantage).sum()
    return Terms(
        -(gain * weight).sum(),
        logp.numel(),
        float(clipped),
        float(divergence.detach().sum()),
        float(apart.detach().abs().sum()),
    )
