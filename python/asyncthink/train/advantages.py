"""Group-relative advantages of GRPO (arXiv 2402.03300). No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Literal

Scale = Literal["none", "group"]
SCALES = ("none", "group")


def advantages(rewards: Sequence[float], scale: Scale = "none") -> list[float]:
    """``A_g = R_g - mean`` over the G values of one group.

    ``scale="none"`` (Dr. GRPO, arXiv 2503.20783) keeps the unit of the reward. ``scale="group"`` divides by the group's
    standard deviation (over G), as the GRPO paper does: where all answers of a group are right, this blows up whatever
    small term still differs to the size of a right answer.

    A group whose rewards are equal has advantages of 0. A reward that is not finite is left out of mean and deviation,
    and its own advantage is 0. Raises ValueError for an empty group and another scale.

    >>> advantages([1.0, 0.0]), advantages([1.0, 1.0]), advantages([1.0, 0.0], scale="group")
    ([0.5, -0.5], [0.0, 0.0], [1.0, -1.0])
    >>> advantages([1.0, float("nan"), 0.0])
    [0.5, 0.0, -0.5]
    """
    if scale not in SCALES:
        raise ValueError(f"scale: expected one of {', '.join(SCALES)}, got {scale!r}")
    if not rewards:
        raise ValueError("rewards: expected a group of at least one episode, got none")
    finite = [reward for reward in rewards if math.isfinite(reward)]
    if not finite:
        return [0.0] * len(rewards)
    mean = fmean(finite)
    centered = [reward - mean if math.isfinite(reward) else 0.0 for reward in rewards]
    std = math.sqrt(math.fsum(value * value for value in centered) / len(finite))
    if std < 1e-8:
        return [0.0] * len(rewards)
    return [value / std for value in centered] if scale == "group" else centered
