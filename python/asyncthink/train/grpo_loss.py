"""The GRPO loss (arXiv 2402.03300) on tree-packed episodes.

An organizer and its workers are one episode with one advantage (:mod:`.advantages`).
"""

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
    """The objective that GRPO maximises, and its parameters.

    For each drawn token t of an episode with advantage A, with ``ratio = exp(logprob - old_logprob)``::

        L_t = min(ratio A, clip(ratio, 1 - clip_low, 1 + clip_high) A) - kl * (exp(d) - d - 1) + entropy * H_t
        d   = reference_logprob - logprob
        H_t = entropy of the distribution that token t was drawn from, in nats

    ``normaliser`` says how the L_t of an optimizer step become one number: "token": their mean over all tokens of the
    step (DAPO, arXiv 2503.14476); "episode": the mean over episodes of each episode's mean; "constant": the mean over
    episodes of (sum / ``constant``) (Dr. GRPO, arXiv 2503.20783).

    Raises ValueError for numbers outside their range.
    """

    clip_low: float = 0.2
    clip_high: float = 0.28
    kl: float = 0.0
    entropy: float = 0.0
    normaliser: Normaliser = "token"
    constant: float = 1024.0

    def __post_init__(self) -> None:
        for name in ("clip_low", "clip_high", "kl", "entropy"):
            if not 0 <= getattr(self, name) < inf:
                raise ValueError(f"{name}: expected at least 0, got {getattr(self, name)}")
        if self.normaliser not in NORMALISERS:
            raise ValueError(f"normaliser: expected one of {', '.join(NORMALISERS)}, got {self.normaliser!r}")
        if not 0 < self.constant < inf:
            raise ValueError(f"constant: expected more than 0, got {self.constant}")

    def weights(self, episodes: Sequence[Episode]) -> list[float]:
        """The weight of each episode's tokens in the step's sum, which is then divided by :meth:`divisor`.

        "token": 1; "episode": 1 / tokens of the episode; "constant": 1 / ``constant``.
        """
        if self.normaliser == "token":
            return [1.0] * len(episodes)
        if self.normaliser == "constant":
            return [1.0 / self.constant] * len(episodes)
        return [1.0 / max(1, episode.total_tokens) for episode in episodes]

    def divisor(self, episodes: Sequence[Episode]) -> float:
        """The divisor of the step's weighted sum. With several processes, sum it over them first."""
        if self.normaliser == "token":
            return float(sum(episode.total_tokens for episode in episodes))
        return float(len(episodes))


@dataclass(frozen=True, slots=True)
class LossSums:
    """Sums over the drawn tokens of one packed batch. ``loss`` [] carries the gradient and is not yet divided."""

    loss: Tensor
    tokens: int
    clipped: float  # tokens whose surrogate is the clipped one
    kl: float
    entropy: float
    ratio: float  # sum of the ratios, and of their squares
    ratio_squared: float
    off_policy: float  # sum of |log_ratio|: the distance between the trainer's and the sampler's log-probabilities


def grpo_loss(
    objective: Objective,
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    weights: Tensor,
    reference_logprobs: Tensor | None = None,
    entropy: Tensor | None = None,
) -> LossSums:
    """The loss of a packed batch of N drawn tokens, as a weighted sum: ``-sum_t weights[t] L_t`` (:class:`Objective`).

    Args:
        logprobs: [N] log-probabilities under the current weights, with gradient.
        old_logprobs: [N] log-probabilities under the sampler, when the tokens were drawn.
        advantages, weights: [N] of each token's episode (:meth:`Objective.weights`).
        reference_logprobs: [N] under the reference model; required if ``objective.kl`` > 0.
        entropy: [N] of the distributions under the current weights; required, with gradient, if ``objective.entropy``
            > 0.

    Raises:
        ValueError: shapes that differ, a KL term without reference log-probabilities, an entropy term without entropy.
    """
    others = {"old_logprobs": old_logprobs, "advantages": advantages, "weights": weights}
    for name, tensor in (others | {"reference_logprobs": reference_logprobs, "entropy": entropy}).items():
        if tensor is not None and tensor.shape != logprobs.shape:
            raise ValueError(f"{name}: expected shape {list(logprobs.shape)}, got {list(tensor.shape)}")
    if objective.kl > 0 and reference_logprobs is None:
        raise ValueError(f"reference_logprobs: expected a tensor for a KL weight of {objective.kl}, got None")
    if objective.entropy > 0 and entropy is None:
        raise ValueError(f"entropy: expected a tensor for an entropy weight of {objective.entropy}, got None")
    log_ratio = logprobs - old_logprobs
    ratio = log_ratio.exp()
    clipped_ratio = ratio.clamp(1 - objective.clip_low, 1 + objective.clip_high)
    surrogate = torch.minimum(ratio * advantages, clipped_ratio * advantages)
    token_loss = -surrogate
    kl = torch.zeros_like(logprobs)
    if reference_logprobs is not None:
        reference_log_ratio = reference_logprobs - logprobs
        kl = torch.expm1(reference_log_ratio) - reference_log_ratio
        token_loss = token_loss + objective.kl * kl
    if entropy is not None and objective.entropy:
        token_loss = token_loss - objective.entropy * entropy
    clipped = (clipped_ratio * advantages < ratio * advantages).sum()
    return LossSums(
        loss=(token_loss * weights).sum(),
        tokens=logprobs.numel(),
        clipped=float(clipped),
        kl=float(kl.detach().sum()),
        entropy=0.0 if entropy is None else float(entropy.detach().sum()),
        ratio=float(ratio.detach().sum()),
        ratio_squared=float(ratio.detach().square().sum()),
        off_policy=float(log_ratio.detach().abs().sum()),
    )
