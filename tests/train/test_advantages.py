"""Group-relative advantages."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncthink.train.advantages import SCALES, Scale, advantages

NAN, INF = math.nan, math.inf


SCALED = st.sampled_from(SCALES)


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=16), SCALED)
def test_advantages_sum_to_zero_and_keep_the_order(rewards: list[float], scale: Scale) -> None:
    made = advantages(rewards, scale)
    assert sum(made) == pytest.approx(0, abs=1e-6)
    for (a, x), (b, y) in zip(zip(rewards, made, strict=True), zip(rewards[1:], made[1:], strict=True), strict=False):
        assert (x <= y) or a > b - 1e-6
    spread = sum(a * a for a in made) / len(made)
    if scale == "group" and any(made):
        assert spread == pytest.approx(1)


@given(st.lists(st.floats(-10, 10) | st.sampled_from([NAN, INF, -INF]), min_size=1, max_size=9), SCALED)
def test_advantages_are_those_of_the_finite_rewards(rewards: list[float], scale: Scale) -> None:
    known = [number for number, value in enumerate(rewards) if math.isfinite(value)]
    expected = [0.0] * len(rewards)
    if known:
        for number, value in zip(known, advantages([rewards[k] for k in known], scale), strict=True):
            expected[number] = value
    assert advantages(rewards, scale) == expected


def test_no_group() -> None:
    with pytest.raises(ValueError, match="expected a group of at least one episode"):
        advantages([])


def test_by_default_a_small_term_stays_small() -> None:
    """Right answers that differ by a small reward: divided by their deviation they weigh as much as right ones."""
    rewards = [1.0 + 0.01 * number for number in range(8)]
    assert max(advantages(rewards)) == pytest.approx(0.035)
    assert max(advantages(rewards, "group")) > 1.5
    with pytest.raises(ValueError, match="scale: expected one of none, group, got 'batch'"):
        advantages(rewards, "batch")  # type: ignore[arg-type]
