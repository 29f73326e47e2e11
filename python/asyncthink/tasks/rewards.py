"""The reward of an episode (AsyncThink, arXiv 2510.26658, section 3.2). No torch.

``R = format_error`` if the protocol was broken, else ``R = R_A + weight * R_eta`` with ``R_A`` the correct share of the
answer in [0, 1] and ``R_eta = min(eta, threshold) / threshold``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from asyncthink.episode.records import Episode
from asyncthink.tasks import Task
from asyncthink.tasks.grading import grade

Reading = Literal["agents", "workers"]
READINGS = ("agents", "workers")


def eta(episode: Episode, reading: Reading = "agents") -> float:
    """The concurrency ratio in [0, 1]: the mean share of the pool that decodes, over a critical path of L tokens.

    The paper allows two readings, with c the pool's capacity:

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
    """The reward function and its parameters.

    Args:
        format_error: reward of an episode that broke the protocol.
        weight: lambda, the weight of the concurrency reward.
        threshold: tau; a concurrency ratio above it is rewarded no more than tau.
        reading: which ratio (:func:`eta`).
        aggregate: how ``parallel`` traces become one answer (:func:`asyncthink.tasks.grading.final_answer`).

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
        """Grade one episode. Only an organizer's concurrency is rewarded: the baselines cannot choose theirs."""
        accuracy = grade(task, puzzle, episode, self.aggregate)
        ratio = eta(episode, self.reading)
        broken = _broken(episode)
        bonus = self.weight * min(ratio, self.threshold) / self.threshold if episode.mode == "asyncthink" else 0.0
        return Reward(accuracy, ratio, bonus, broken, self.format_error if broken else accuracy + bonus)


def _broken(episode: Episode) -> bool:
    """An episode is broken by one format error. Parallel traces are independent: each of them must have failed."""
    if episode.mode == "parallel":
        return all(trace.returned is None for trace in episode.traces)
    return bool(episode.format_errors) or episode.answer is None


@dataclass(frozen=True, slots=True)
class Reward:
    """The terms of one episode's reward, and the reward itself (``total``).

    ``concurrency`` is ``weight * R_eta``. It and ``accuracy`` are reported even if the protocol was ``broken``.
    """

    accuracy: float
    eta: float
    concurrency: float
    broken: bool
    total: float
