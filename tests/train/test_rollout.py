"""Which episodes of a group the update uses, and the metrics of a step."""

from __future__ import annotations

import math

import pytest

from asyncthink.episode.records import Episode, Trace
from asyncthink.tasks.rewards import Reward
from asyncthink.train.metrics import COUNTS, episode_metrics, step_metrics
from asyncthink.train.rollout import with_advantages

NAN, INF = math.nan, math.inf


def episode(*logprobs: float) -> Episode:
    trace = Trace(0, "solo")
    trace.add(7, False, NAN, 0)  # a prompt's token has none
    for number, logprob in enumerate(logprobs):
        trace.add(number, True, logprob, number + 1)
    return Episode("q", "sequential", pool=1, traces=[trace], answer="1")


def reward(total: float) -> Reward:
    return Reward(total, 0.0, 0.0, False, total)


def test_a_reward_or_a_logprob_that_is_not_finite_leaves_the_group() -> None:
    drawn = [episode(-1.0), episode(-1.0, NAN), episode(-1.0), episode(-INF), episode(-1.0)]
    group = with_advantages(drawn, [reward(value) for value in (1.0, 5.0, NAN, 5.0, 0.0)])
    assert [rollout.usable for rollout in group] == [True, False, False, False, True]
    assert [rollout.advantage for rollout in group] == [1.0, 0.0, 0.0, 0.0, -1.0]


@pytest.mark.parametrize("rewards", [(NAN, 1.0), (NAN, INF), (1.0,)])
def test_fewer_than_two_are_no_group(rewards: tuple[float, ...]) -> None:
    group = with_advantages([episode(-1.0)] * len(rewards), [reward(value) for value in rewards])
    assert [(rollout.usable, rollout.advantage) for rollout in group] == [(False, 0.0)] * len(rewards)


def test_metrics_are_means_of_what_is_finite_and_counts_of_what_is_not() -> None:
    drawn = [episode(-1.0, -1.0), episode(-1.0), episode(NAN)]
    group = with_advantages(drawn, [reward(value) for value in (1.0, NAN, 0.0)])
    made = step_metrics([episode_metrics(rollout) for rollout in group])
    assert (made["episodes"], made["reward"], made["accuracy"]) == (3, 0.5, 0.5)
    assert made["total_tokens"] == pytest.approx(4 / 3)
    assert [made[name] for name in COUNTS] == [1, 1, 3]
    assert math.isnan(step_metrics([episode_metrics(group[1])])["reward"])


def test_an_episode_that_failed_leaves_the_group() -> None:
    """Logits that were not finite are no mistake of format to learn from."""
    broken = episode(-1.0)
    broken.failures.append("solo: its logits hold NaN or no finite value")
    rewards = [reward(value) for value in (0.0, 1.0, 1.0)]
    rollouts = with_advantages([broken, episode(-1.0), episode(-2.0)], rewards)
    assert [r.usable for r in rollouts] == [False, True, True]
