"""Metrics of rollouts: of one episode, and of all episodes of a step. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite, nan
from statistics import fmean

from asyncthink.tasks.rewards import joined
from asyncthink.train.rollout import Rollout, finite_logprobs

#: Metrics that a step reports as a sum over its episodes; all others are means.
COUNTS = ("rewards_not_finite", "logprobs_not_finite", "left_out")


def episode_metrics(rollout: Rollout) -> dict[str, float]:
    """The metrics of one episode; each term of the reward has its own."""
    episode, reward = rollout.episode, rollout.reward
    useful = joined(episode)
    worker_tokens = {trace.agent: trace.decoded for trace in episode.traces if trace.role == "worker"}
    return {
        "reward": reward.total,
        "accuracy": reward.accuracy,
        "solved": reward.accuracy >= 1,
        "eta": reward.eta,
        "concurrency_reward": reward.concurrency,
        "path_reward": reward.path,
        "format_errors": reward.broken,
        "critical_path_tokens": episode.critical_path_tokens,
        "total_tokens": episode.total_tokens,
        "forks": episode.forks,
        "joined_tokens": sum(drawn for agent, drawn in worker_tokens.items() if agent in useful),
        "unjoined_tokens": sum(drawn for agent, drawn in worker_tokens.items() if agent not in useful),
        "rewards_not_finite": not isfinite(reward.total),
        "logprobs_not_finite": not finite_logprobs(episode),
        "left_out": not rollout.usable,
    }


def update_metrics(loss: float, norm: float, sums: Mapping[str, float]) -> dict[str, float]:
    """The metrics of an optimizer step from the sums over its N tokens (:class:`.grpo_loss.LossSums`).

    Means per token: ``clipped``, ``kl``, ``off_policy`` (mean ``|log_ratio|``), ``entropy``. ``effective_samples`` is
    ``(sum w)^2 / (N sum w^2)`` of the ratios w, in (0, 1]: 1 where the tokens were drawn with these very weights.
    """
    tokens = sums.get("tokens", 0.0)
    means = {name: sums[name] / tokens if tokens else nan for name in ("clipped", "kl", "off_policy", "entropy")}
    spread = tokens * sums.get("ratio_squared", 0.0)
    effective = sums["ratio"] ** 2 / spread if spread else nan
    return {"loss": loss, **means, "effective_samples": effective, "gradient_norm": norm}


def step_metrics(episodes: Sequence[dict[str, float]]) -> dict[str, float]:
    """The metrics of a step from the :func:`episode_metrics` of all its episodes.

    Means over episodes (:func:`finite_mean`), sums for :data:`COUNTS`, and the number of ``episodes``.
    """
    metrics: dict[str, float] = {"episodes": len(episodes)}
    for name in episodes[0]:
        values = [episode[name] for episode in episodes]
        metrics[name] = sum(values) if name in COUNTS else finite_mean(values)
    return metrics


def mean_metrics(reports: Sequence[dict[str, float]]) -> dict[str, float]:
    """The :func:`finite_mean` of each metric over reports that all have the same metrics."""
    return {name: finite_mean([report[name] for report in reports]) for name in reports[0]}


def finite_mean(values: Sequence[float]) -> float:
    """The mean of the finite values; NaN if there is none.

    >>> finite_mean([1.0, float("inf"), 2.0])
    1.5
    """
    finite = [value for value in values if isfinite(value)]
    return fmean(finite) if finite else nan
