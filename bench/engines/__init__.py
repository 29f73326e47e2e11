"""Whole decoders side by side: branches behind one prefix, the same weights, the same tokens.

Each engine prefills a prefix once, lets B branches go on from it, and takes one given token a branch in each step; what
it returns are the logits of every branch. Nobody draws, so nobody is faster by leaving the vocabulary out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

MOST_BRANCHES = 8
NEW = 64  # tokens that a branch may decode


class Engine(Protocol):
    """One way to decode. ``note`` says what a reader of the table should know."""

    note: str

    def prefill(self, tokens: Sequence[int]) -> None:
        """Forget everything and compute the prefix."""
        ...

    def branch(self, count: int) -> None:
        """Drop the branches there are, and begin ``count`` new ones at the end of the prefix."""
        ...

    def step(self, tokens: Sequence[int]) -> Sequence[Tensor]:
        """One token of each branch -> its logits [V], valid until the next step."""
        ...

    def close(self) -> None:
        """Give all memory back."""
        ...
