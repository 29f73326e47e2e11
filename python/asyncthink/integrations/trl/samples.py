"""An episode as the rollout samples that TRL's AsyncGRPOTrainer reads: one an agent."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from asyncthink.integrations.agent_rows import AgentRow, agent_rows
from asyncthink.train.metrics import COUNTS, episode_metrics
from asyncthink.train.rollout import Rollout

#: TRL adds up a metric whose name has the word "total", and takes the mean of others.
_RENAMED = {"total_tokens": "tokens"}


@dataclass(slots=True)
class Sample:
    """What one agent read and drew, with the fields of TRL's ``RolloutSample``.

    ``input_ids`` [T] int64 is the agent's whole context: for a worker with shared context it begins with the tokens of
    the agents above it, where TRL's packer finds the fork again. ``completion_mask`` [T] int64 is 1 at the tokens that
    this agent drew, and ``old_log_probs`` [T] float32 are their natural-log probabilities when they were drawn. An
    episode's samples share ``advantage``, unless each parallel trace has its own
    (:class:`asyncthink.train.rollout.Grading`); a group's share ``group_id``. ``model_version`` is the version of the
    weights that the episode began with. ``enqueued_at`` is in seconds since the epoch.
    """

    prompt: list[dict[str, str]]
    completion: list[dict[str, str]]
    input_ids: NDArray[np.int64]
    completion_mask: NDArray[np.int64]
    old_log_probs: NDArray[np.float32]
    advantage: float
    model_version: int
    group_id: int
    metrics: dict[str, float]
    enqueued_at: float | None = None


def samples(rollout: Rollout, group_id: int, model_version: int) -> list[Sample]:
    """A sample for each agent that drew a token, workers first.

    The metrics of the episode (:func:`sample_metrics`) stand in the organizer's sample alone: TRL averages a metric
    over the samples that have it, and an episode of many agents must not count more than others. Raises ValueError for
    an episode that is not ``usable``, and for the join modes "append" and "link", whose K/V no row of tokens has.

    >>> from asyncthink.episode.records import Episode, Trace
    >>> from asyncthink.tasks.rewards import Reward
    >>> organizer = Trace(0, "organizer", tokens=[1, 2, 3, 4], sampled=[False, True, True, True], logprobs=[-0.5] * 4)
    >>> worker = Trace(1, "worker", 0, 1, fork_at=3, tokens=[7, 8], sampled=[False, True], logprobs=[0.0, -0.25])
    >>> episode = Episode("q", "asyncthink", traces=[organizer, worker])
    >>> rollout = Rollout(episode, Reward(1, 1, 0, False, 1.0), (0.5, 0.5))
    >>> for sample in samples(rollout, group_id=3, model_version=1):
    ...     print(sample.input_ids.tolist(), sample.completion_mask.tolist(), sample.old_log_probs.tolist())
    [1, 2, 3, 7, 8] [0, 0, 0, 0, 1] [0.0, 0.0, 0.0, 0.0, -0.25]
    [1, 2, 3, 4] [0, 1, 1, 1] [0.0, -0.5, -0.5, -0.5]
    """
    if not rollout.usable:
        raise ValueError("rollout: expected one that an update may use, got one that is not usable")
    return [_sample(row, rollout, group_id, model_version) for row in agent_rows(rollout.episode)]


def _sample(row: AgentRow, rollout: Rollout, group_id: int, model_version: int) -> Sample:
    given = [0] * len(row.prompt)
    episode = rollout.episode
    return Sample(
        prompt=[{"role": "user", "content": episode.question}],
        completion=[{"role": "assistant", "content": episode.traces[row.agent].text}],
        input_ids=np.array([*row.prompt, *row.response], dtype=np.int64),
        completion_mask=np.array([*given, *row.mask], dtype=np.int64),
        old_log_probs=np.array([*given, *row.logprobs], dtype=np.float32),
        advantage=rollout.advantages[row.agent],
        model_version=model_version,
        group_id=group_id,
        metrics={} if row.agent else sample_metrics(rollout),
    )


def sample_metrics(rollout: Rollout) -> dict[str, float]:
    """``reward``, and the other figures of :func:`asyncthink.train.metrics.episode_metrics` under ``episode/``."""
    figures = {name: float(value) for name, value in episode_metrics(rollout).items() if name not in COUNTS}
    reward = figures.pop("reward")
    return {"reward": reward} | {f"episode/{_RENAMED.get(name, name)}": value for name, value in figures.items()}
