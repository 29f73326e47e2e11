"""Median, p20 and p80 of repeated timings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """Seconds."""

    median: float
    p20: float
    p80: float
    repeats: int

    @classmethod
    def of(cls, times: Sequence[float]) -> Spread:
        """
        >>> Spread.of([3.0, 1.0, 2.0])
        Spread(median=2.0, p20=1.0, p80=3.0, repeats=3)

        Raises ValueError on no times.
        """
        ordered, n = sorted(times), len(times)
        if n == 0:
            raise ValueError("times: expected at least one, got none")
        middle = (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
        return cls(middle, ordered[n // 5], ordered[-1 - n // 5], n)
