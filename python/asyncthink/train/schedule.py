"""The learning-rate schedule of a run."""

from __future__ import annotations

import math


def learning_rate(step: int, steps: int, peak: float, warmup: int, decay: float) -> float:
    """Learning rate of step 0, 1, ..., ``steps`` - 1.

    A linear warm-up over ``warmup`` steps, then ``peak``, then ``peak * (1 - sqrt(progress))`` down to zero over the
    last ``decay`` of the steps, a share in [0, 1] (Hägele et al., arXiv 2405.18392).

    >>> [round(learning_rate(step, 8, 1.0, 2, 0.5), 2) for step in range(8)]
    [0.5, 1.0, 1.0, 1.0, 1.0, 0.5, 0.29, 0.13]
    """
    start = steps * (1 - decay)
    warmed_up = min(1.0, (step + 1) / max(1, warmup))
    progress = max(0.0, (step - start) / max(1.0, steps - start))
    return peak * warmed_up * (1 - math.sqrt(progress))


def check_rates(learning_rate: float, weight_decay: float, clip: float) -> None:
    """Raises ValueError for a rate or weight decay that is negative or not finite, and for a clip not above 0."""
    for name, value in (("learning_rate", learning_rate), ("weight_decay", weight_decay)):
        if not 0 <= value < math.inf:
            raise ValueError(f"{name}: expected a finite number of at least 0, got {value}")
    if not clip > 0:
        raise ValueError(f"clip: expected more than 0, got {clip}")


def check_schedule(warmup: int, decay: float) -> None:
    """Raises ValueError for a negative warm-up and a share outside [0, 1]."""
    if warmup < 0:
        raise ValueError(f"warmup: expected at least 0 steps, got {warmup}")
    if not 0 <= decay <= 1:
        raise ValueError(f"decay: expected a share in [0, 1], got {decay}")
