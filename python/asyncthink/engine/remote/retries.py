"""How a request is tried again."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, fields
from typing import TypeVar

from asyncthink.engine.remote.errors import BrokenError, UnreachableError

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Retries:
    """How a request is tried again.

    Args:
        most: attempts without a single token, the first one included; then the request fails.
        first: seconds before the second attempt; twice as long before each later one, and by chance up to a quarter
            less, so that many clients do not come back at once.
        longest: the most seconds between two attempts, where the server does not ask for another time.

    >>> [Retries(first=0.5, longest=3.0).seconds(failed) for failed in range(1, 5)]
    [0.5, 1.0, 2.0, 3.0]
    """

    most: int = 8
    first: float = 0.5
    longest: float = 15.0

    def __post_init__(self) -> None:
        if self.most < 1:
            raise ValueError(f"most: expected at least 1, got {self.most}")
        for each in fields(self)[1:]:
            if not getattr(self, each.name) >= 0:
                raise ValueError(f"{each.name}: expected >= 0 seconds, got {getattr(self, each.name)}")

    def seconds(self, failed: int) -> float:
        """Before the next attempt, after ``failed`` ones."""
        return min(self.first * 2.0 ** (failed - 1), self.longest)

    def by_chance(self, failed: int) -> float:
        """:meth:`seconds`, less up to a quarter."""
        return self.seconds(failed) * random.uniform(0.75, 1.0)

    async def call(self, request: Callable[[], Awaitable[Result]]) -> Result:
        """What ``request()`` gives, asked again where it raises BrokenError.

        Raises UnreachableError after ``most`` attempts, and every other error at once.
        """
        for failed in itertools.count(1):
            try:
                return await request()
            except BrokenError as error:
                self.check(failed, error)
                await asyncio.sleep(self.by_chance(failed) if error.seconds is None else error.seconds)
        raise AssertionError("unreachable")

    def check(self, failed: int, error: BrokenError) -> None:
        """Raises UnreachableError if there is no attempt after ``failed`` ones."""
        if failed >= self.most:
            raise UnreachableError(f"no answer after {failed} attempts: {error}") from error
