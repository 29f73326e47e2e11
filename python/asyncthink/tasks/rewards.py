"""Rewards of an episode and group-relative advantages. No torch.

``R = format_error`` where the protocol was broken, else ``R = R_A + weight * R_eta`` with ``R_A`` the correct share of
the answer in [0, 1] and ``R_eta = min(eta, threshold) / threshold`` (AsyncThink, arXiv 2510.26658, section 3.2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from asyncthink.episode.records import Episode
from asyncthink.tasks import Task
from asyncthink.tasks.grading import grade

Reading = Literal["agents", "workers"]
READINGS = ("agents", "workers")


def eta(episode: Episode, reading: Reading = "agents") -> float:
    """The concurrency ratio in [0, 1]: how much of the pool decodes, on average over the critical path of L tokens.

    The paper leaves two readings of "agents at work"; both are here:

    - ``agents``: tokens drawn by all agents / (L c);
    - ``workers``: tokens drawn by workers / (L (c - 1)), 0 for a pool without workers.

    Raises ValueError for another reading.

    >>> eta(Episode("q", "asyncthink", pool=4))
    0.0
    """
    if reading not in READINGS:
        raise ValueError(f"reading: expected one of {', '.join(READINGS)}, got {reading!r}")
    path = episode.critical_path_tokens
    if not path:
        return 0.0
    if reading == "agents":
        return episode.total_tokens / (path * episode.pool)
    drawn = sum(trace.decoded for trace in episode.traces if trace.role == "worker")
    return drawn / (path * (episode.pool - 1)) if episode.pool > 1 else 0.0


@dataclass(frozen=True, slots=True)
class RewardRule:
    """The numbers of the reward.

    ``format_error``: the reward of an episode that broke the protocol; ``weight``: lambda; ``threshold``: tau, the
    concurrency ratio above which more is not rewarded; ``reading``: which ratio (:func:`eta`); ``aggregate``: how
    ``parallel`` traces become one answer (:func:`asyncthink.tasks.grading.final_answer`).

    Raises ValueError for a format error that is not finite, a weight below 0 or a threshold outside (0, 1].
    """

    format_error: float = -0.5
    weight: float = 0.2
    threshold: float = 0.75
    reading: Reading = "agents"
    aggregate: str | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.format_error):
            raise ValueError(f"format_error: expected a finite number, got {self.format_error}")
        if not 0 <= self.weight < math.inf:
            raise ValueError(f"weight: expected at least 0, got {self.weight}")
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold: expected a ratio in (0, 1], got {self.threshold}")
        if self.reading not in READINGS:
            raise ValueError(f"reading: expected one of {', '.join(READINGS)}, got {self.reading!r}")

    def __call__(self, task: Task, puzzle: Any, episode: Episode) -> Reward:
        """Grade one episode. Only an organizer's concurrency is rewarded: the baselines have no choice of it."""
        accuracy = grade(task, puzzle, episode, self.aggregate)
        ratio = eta(episode, self.reading)
        broken = _broken(episode)
        bonus = self.weight * min(ratio, self.threshold) / self.threshold if episode.mode == "asyncthink" else 0.0
        return Reward(accuracy, ratio, bonus, broken, self.format_error if broken else accuracy + bonus)


def _broken(episode: Episode) -> bool:
    """One format error breaks an episode. Parallel traces are independent: it takes one in each of them."""
    if episode.mode == "parallel":
        return all(trace.finish != "answer" for trace in episode.traces)
    return bool(episode.format_errors) or episode.answer is None


@dataclass(frozen=True, slots=True)
class Reward:
    """The terms of one episode's reward, and the reward itself (``total``).

    ``concurrency`` is ``weight * R_eta``; both it and ``accuracy`` are told whether or not the protocol was ``broken``.
    """

    accuracy: float
    eta: float
    concurrency: float
    broken: bool
    total: float


def advantages(rewards: Sequence[float], normalise: bool = True) -> list[float]:
    """Group-relative advantages: ``A_g = (R_g - mean) / std``, over the G episodes of one question.

    Without ``normalise`` the division is left out (Dr. GRPO, arXiv 2503.20783). A group without differences has
    advantages of 0. A reward that is not finite has no say in those of the others and an advantage of 0 itself. Raises
    ValueError for an empty group.

    >>> advantages([1.0, 0.0]), advantages([1.0, 1.0]), advantages([1.0, 0.0], normalise=False)
    ([1.0, -1.0], [0.0, 0.0], [0.5, -0.5])
    >>> advantages([1.0, float("nan"), 0.0])
    [1.0, 0.0, -1.0]
    """
    if not rewards:
        raise ValueError("rewards: expected a group of at least one episode, got none")
    known = [reward for reward in rewards if math.isfinite(reward)]
    if not known:
        return [0.0] * len(rewards)
    mean = fmean(known)
    apart = [reward - mean if math.isfinite(reward) else 0.0 for reward in rewards]
    spread = math.sqrt(math.fsum(a * a for a in apart) / len(known))
    if spread < 1e-8:
        return [0.0] * len(rewards)
    return [a / spread for a in apart] if normalise else apart
