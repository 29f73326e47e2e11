"""Which episodes of a group the update uses, and the figures of a step."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncthink.episode.records import Episode, Trace
from asyncthink.tasks.rewards import Reward, advantages
from asyncthink.train.rollout import COUNTS, figures, graded, measures

NAN, INF = math.nan, math.inf


def episode(*logprobs: float) -> Episode:
    trace = Trace(0, "solo")
    trace.add(7, False, NAN, 0)  # a prompt's token has none
    for number, logprob in enumerate(logprobs):
        trace.add(number, True, logprob, number + 1)
    return Episode("q", "sequential", pool=1, traces=[trace], answer="1")


def reward(total: float) -> Reward:
    return Reward(total, 0.0, 0.0, False, total)


@given(st.lists(st.floats(-10, 10) | st.sampled_from([NAN, INF, -INF]), min_size=1, max_size=9), st.booleans())
def test_advantages_are_those_of_the_finite_rewards(rewards: list[float], normalise: bool) -> None:
    known = [number for number, value in enumerate(rewards) if math.isfinite(value)]
    expected = [0.0] * len(rewards)
    if known:
        for number, value in zip(known, advantages([rewards[k] for k in known], normalise), strict=True):
            expected[number] = value
    assert advantages(rewards, normalise) == expected


def test_a_reward_or_a_logprob_that_is_not_finite_leaves_the_group() -> None:
    drawn = [episode(-1.0), episode(-1.0, NAN), episode(-1.0), episode(-INF), episode(-1.0)]
    group = graded(drawn, [reward(value) for value in (1.0, 5.0, NAN, 5.0, 0.0)])
    assert [rollout.usable for rollout in group] == [True, False, False, False, True]
    assert [rollout.advantage for rollout in group] == [1.0, 0.0, 0.0, 0.0, -1.0]


@pytest.mark.parametrize("rewards", [(NAN, 1.0), (NAN, INF), (1.0,)])
def test_fewer_than_two_are_no_group(rewards: tuple[float, ...]) -> None:
    group = graded([episode(-1.0)] * len(rewards), [reward(value) for value in rewards])
    assert [(rollout.usable, rollout.advantage) for rollout in group] == [(False, 0.0)] * len(rewards)


def test_figures_are_means_of_what_is_finite_and_counts_of_what_is_not() -> None:
    drawn = [episode(-1.0, -1.0), episode(-1.0), episode(NAN)]
    group = graded(drawn, [reward(value) for value in (1.0, NAN, 0.0)])
    made = figures([measures(rollout) for rollout in group])
    assert (made["episodes"], made["reward"], made["accuracy"]) == (3, 0.5, 0.5)
    assert made["total_tokens"] == pytest.approx(4 / 3)
    assert [made[name] for name in COUNTS] == [1, 1, 3]
    assert math.isnan(figures([measures(group[1])])["reward"])


def test_an_episode_that_failed_leaves_the_group() -> None:
    """Logits that were not finite are no mistake of format to learn from."""
    broken = episode(-1.0)
    broken.failures.append("solo: its logits hold NaN or no finite value")
    rewards = [reward(value) for value in (0.0, 1.0, 1.0)]
    rollouts = graded([broken, episode(-1.0), episode(-2.0)], rewards)
    assert [r.usable for r in rollouts] == [False, True, True]
