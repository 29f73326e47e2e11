"""Bootstrap intervals over puzzles. No torch.

Percentile bootstrap (Efron 1979): P of P puzzles are drawn with replacement, :data:`RESAMPLES` times. The interval is
between the 2.5th and the 97.5th percentile of the statistic over these resamples. All statistics of one
:class:`Bootstrap` use the same draws, so a difference between two modes on the same puzzles is paired. The interval of
a share of exactly 0 or 1 has no width: resampling only repeats observed values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

RESAMPLES, LEVEL = 2000, 0.95
Floats: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A statistic with its interval, in the same unit."""

    value: float
    low: float
    high: float


class Bootstrap:
    """Resamples of P puzzles, a pure function of P and ``seed``. Raises ValueError for no puzzles.

    >>> Bootstrap(4).mean([0.0, 1.0, 1.0, 0.0])
    Estimate(value=0.5, low=0.0, high=1.0)
    """

    def __init__(self, puzzles: int, seed: int = 0) -> None:
        if puzzles < 1:
            raise ValueError(f"puzzles: expected at least one, got {puzzles}")
        self.puzzles = puzzles
        self._draws = np.random.default_rng(seed).integers(puzzles, size=(RESAMPLES, puzzles))

    def mean(self, column: Sequence[float]) -> Estimate:
        """The mean of one column [P]."""
        return self._estimate(_mean, column)

    def median(self, column: Sequence[float]) -> Estimate:
        """The median of one column [P]."""
        return self._estimate(_median, column)

    def difference(self, column: Sequence[float], other: Sequence[float]) -> Estimate:
        """mean(column) - mean(other), both [P], of the same puzzles."""
        return self._estimate(lambda a, b: _mean(a) - _mean(b), column, other)

    def ratio(self, column: Sequence[float], other: Sequence[float]) -> Estimate:
        """mean(column) / mean(other), both [P], of the same puzzles, and ``other`` positive."""
        return self._estimate(lambda a, b: _mean(a) / _mean(b), column, other)

    def median_ratio(self, column: Sequence[float], other: Sequence[float]) -> Estimate:
        """median(column) / median(other), both [P], of the same puzzles, and ``other`` positive."""
        return self._estimate(lambda a, b: _median(a) / _median(b), column, other)

    def _estimate(self, statistic: Callable[..., Any], *columns: Sequence[float]) -> Estimate:
        arrays = [np.asarray(column, np.float64) for column in columns]
        for array in arrays:
            if array.shape != (self.puzzles,):
                raise ValueError(f"column: expected {self.puzzles} values, one per puzzle, got shape {array.shape}")
        resampled = statistic(*(array[self._draws] for array in arrays))
        low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return Estimate(float(statistic(*arrays)), float(low), float(high))


def _mean(values: Floats) -> Any:
    return values.mean(-1)


def _median(values: Floats) -> Any:
    return np.median(values, -1)
