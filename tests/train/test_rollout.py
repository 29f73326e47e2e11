"""Which episodes of a group the update uses, and the metrics of a step."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from asyncthink.episode.records import Episode, Join, Trace
from asyncthink.tasks.rewards import Reward
from asyncthink.train.metrics import COUNTS, episode_metrics, step_metrics, update_metrics
from asyncthink.train.rollout import Rollout, differs, drawn_tokens, with_advantages

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
    group = graded(drawn, 1.0, 5.0, NAN, 5.0, 0.0)
    assert [rollout.usable for rollout in group] == [True, False, False, False, True]
    assert [rollout.advantages for rollout in group] == [(0.5,), (0.0,), (0.0,), (0.0,), (-0.5,)]


def graded(episodes: list[Episode], *rewards: float) -> list[Rollout]:
    return with_advantages(episodes, [reward(value) for value in rewards], [[value] for value in rewards])


@pytest.mark.parametrize("rewards", [(NAN, 1.0), (NAN, INF), (1.0,)])
def test_fewer_than_two_are_no_group(rewards: tuple[float, ...]) -> None:
    group = graded([episode(-1.0)] * len(rewards), *rewards)
    assert [(rollout.usable, rollout.advantages) for rollout in group] == [(False, (0.0,))] * len(rewards)
    assert not differs(group)


def test_metrics_are_means_of_what_is_finite_and_counts_of_what_is_not() -> None:
    drawn = [episode(-1.0, -1.0), episode(-1.0), episode(NAN)]
    group = graded(drawn, 1.0, NAN, 0.0)
    made = step_metrics([episode_metrics(rollout) for rollout in group])
    assert (made["episodes"], made["reward"], made["accuracy"]) == (3, 0.5, 0.5)
    assert made["total_tokens"] == pytest.approx(4 / 3)
    assert [made[name] for name in COUNTS] == [1, 1, 3]
    assert math.isnan(step_metrics([episode_metrics(group[1])])["reward"])


def test_an_episode_that_failed_leaves_the_group() -> None:
    """Logits that were not finite are no mistake of format to learn from."""
    broken = episode(-1.0)
    broken.failures.append("solo: its logits hold NaN or no finite value")
    rollouts = graded([broken, episode(-1.0), episode(-2.0)], 0.0, 1.0, 1.0)
    assert [r.usable for r in rollouts] == [False, True, True]


def test_a_trace_has_an_advantage_of_its_own_where_each_is_graded() -> None:
    """Relative to all traces of the group; an episode that cannot be used takes none part."""
    two = Episode("q", "parallel", pool=2, traces=[trace(0, 3), trace(1, 4)])
    broken = Episode("q", "parallel", pool=2, traces=[trace(0, 3), trace(1, 4)], failures=["solo: NaN"])
    rewards = [reward(1.0), reward(0.5), reward(9.0)]
    rollouts = with_advantages([two, two, broken], rewards, [[0.5, 0.0], [0.25, 0.25], [9.0, 9.0]])
    assert [rollout.advantages for rollout in rollouts] == [(0.25, -0.25), (0.0, 0.0), (0.0, 0.0)]
    assert differs(rollouts)
    _, given, _ = drawn_tokens(rollouts[:1], [1.0], torch.device("cpu"))
    assert given.tolist() == [0.25] * 3 + [-0.25] * 4


def trace(agent: int, drawn: int) -> Trace:
    made = Trace(agent, "solo", tokens=[1] * drawn, sampled=[True] * drawn, logprobs=[-1.0] * drawn)
    made.steps, made.pieces = [0] * drawn, ["x"] * drawn
    return made


def test_tokens_of_workers_that_nobody_joins_are_counted_apart() -> None:
    organizer = Trace(0, "organizer", joins=[Join(1, 1, 0, 0, "exact")])
    workers = [dataclasses.replace(trace(k, 2 * k), role="worker", parent=0, fork_index=k) for k in (1, 2)]
    drawn = Episode("q", "asyncthink", traces=[organizer, *workers], answer="1")
    made = episode_metrics(Rollout(drawn, reward(1.0), (0.0,) * 3))
    assert (made["joined_tokens"], made["unjoined_tokens"]) == (2, 4)


def test_what_an_update_reports() -> None:
    sums = {"tokens": 4.0, "clipped": 1.0, "kl": 0.0, "off_policy": 2.0, "entropy": 6.0, "ratio": 4.0}
    made = update_metrics(0.5, 0.1, sums | {"ratio_squared": 8.0})
    assert (made["entropy"], made["clipped"], made["effective_samples"]) == (1.5, 0.25, 0.5)
    assert math.isnan(update_metrics(0.0, 0.0, {})["effective_samples"])
