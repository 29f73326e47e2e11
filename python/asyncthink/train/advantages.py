"""Group-relative advantages of GRPO (arXiv 2402.03300). No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean


def advantages(rewards: Sequence[float], normalise: bool = True) -> list[float]:
    """``A_g = (R_g - mean) / std`` over the G episodes of one question; ``std`` divides by G.

    Without ``normalise`` the advantage is ``R_g - mean`` (Dr. GRPO, arXiv 2503.20783). A group whose rewards are equal
    has advantages of 0. A reward that is not finite is left out of mean and std, and its own advantage is 0. Raises
    ValueError for an empty group.

    >>> advantages([1.0, 0.0]), advantages([1.0, 1.0]), advantages([1.0, 0.0], normalise=False)
    ([1.0, -1.0], [0.0, 0.0], [0.5, -0.5])
    >>> advantages([1.0, float("nan"), 0.0])
    [1.0, 0.0, -1.0]
    """
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
    return [value / std for value in centered] if normalise else centered
