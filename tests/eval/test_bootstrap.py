"""Bootstrap intervals against what is known of them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from asyncthink.eval.bootstrap import LEVEL, Bootstrap

COLUMN = [float(k % 10 < 7) for k in range(400)]  # a share of 0.7


def test_interval_of_a_share_is_the_normal_one() -> None:
    made = Bootstrap(400).mean(COLUMN)
    arm = 1.96 * math.sqrt(0.7 * 0.3 / 400)
    assert made.value == pytest.approx(0.7)
    assert (made.low, made.high) == (pytest.approx(0.7 - arm, abs=0.006), pytest.approx(0.7 + arm, abs=0.006))


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    columns = rng.random((300, 60)) < 0.4
    intervals = [Bootstrap(60, seed).mean(column.astype(float).tolist()) for seed, column in enumerate(columns)]
    covered = sum(made.low <= 0.4 <= made.high for made in intervals) / len(intervals)
    assert abs(covered - LEVEL) < 0.04


def test_differences_and_ratios_are_paired() -> None:
    rng, bootstrap = np.random.default_rng(0), Bootstrap(100)
    base = (1 + 9 * rng.random(100)).tolist()
    further, twice = [value + 3 for value in base], [2 * value for value in base]
    shift, factor, median = (
        bootstrap.difference(further, base), bootstrap.ratio(twice, base), bootstrap.median_ratio(twice, base),
    )  # fmt: skip
    assert (shift.value, shift.low, shift.high) == tuple(pytest.approx(3) for _ in range(3))
    assert (factor.low, factor.high) == (median.low, median.high) == (pytest.approx(2), pytest.approx(2))
    other = bootstrap.difference(further, base[::-1])
    assert other.value == pytest.approx(3)
    assert other.high - other.low > 1, "columns of other puzzles do not cancel"


def test_the_same_seed_gives_the_same_interval() -> None:
    skewed = [float(k * k) for k in range(400)]
    assert Bootstrap(400).mean(skewed) == Bootstrap(400).mean(skewed) != Bootstrap(400, seed=1).mean(skewed)
    made = Bootstrap(400).median(skewed)
    assert made.value == 199.5 * 199.5 + 0.25
    assert made.low < made.value < made.high


def test_refuses_columns_of_another_length() -> None:
    with pytest.raises(ValueError, match="puzzles: expected at least one, got 0"):
        Bootstrap(0)
    with pytest.raises(ValueError, match=r"column: expected 3 values, one per puzzle, got shape \(1,\)"):
        Bootstrap(3).mean([1.0])
