"""How fast a server is asked: so many requests at once, and none while it asks to wait."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import TypeVar

from openai import APIConnectionError, APIStatusError

Result = TypeVar("Result")
#: Statuses after which the same request may succeed later.
PASSING = frozenset((408, 409, 429, 500, 502, 503, 504, 529))
SHORTEST, LONGEST = 0.5, 60.0  # seconds of the first and of the longest pause that the server does not prescribe


class Pace:
    """Calls a server, again where an error may pass, at most ``concurrency`` times at once.

    A 429 or another passing error holds up all calls, not only its own: for as long as ``Retry-After`` says, else for
    0.5 s, 1 s, 2 s, ... up to a minute, less up to a quarter at random. ``sleep`` and ``clock`` are in seconds.

    Raises ValueError for a concurrency below 1 or a negative number of retries.
    """

    def __init__(
        self,
        concurrency: int,
        retries: int,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if concurrency < 1:
            raise ValueError(f"concurrency: expected at least 1, got {concurrency}")
        if retries < 0:
            raise ValueError(f"retries: expected at least 0, got {retries}")
        self.retried = 0
        self._retries, self._sleep, self._clock = retries, sleep, clock
        self._places = asyncio.Semaphore(concurrency)
        self._resume = clock()

    async def call(self, request: Callable[[], Awaitable[Result]]) -> Result:
        """The result of ``request()``. Raises its last error after ``retries`` retries, and another one at once."""
        async with self._places:
            for tries in range(self._retries + 1):
                await self._wait()
                try:
                    return await request()
                except (APIStatusError, APIConnectionError) as error:
                    if tries == self._retries or not _passes(error):
                        raise
                    self.retried += 1
                    self._resume = max(self._resume, self._clock() + _pause(error, tries))
        raise AssertionError("unreachable")

    async def _wait(self) -> None:
        while (rest := self._resume - self._clock()) > 0:
            await self._sleep(rest)


def _passes(error: APIStatusError | APIConnectionError) -> bool:
    return not isinstance(error, APIStatusError) or error.status_code in PASSING


def _pause(error: APIStatusError | APIConnectionError, tries: int) -> float:
    if isinstance(error, APIStatusError):
        told = retry_after(error.response.headers)
        if told is not None:
            return told
    return min(SHORTEST * 2.0**tries, LONGEST) * random.uniform(0.75, 1.0)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds of ``Retry-After-Ms`` or ``Retry-After``, a number or a date; None if there is neither.

    >>> retry_after({"retry-after": "7"}), retry_after({"retry-after": "soon"})
    (7.0, None)
    """
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        with contextlib.suppress(KeyError, ValueError):
            seconds = float(headers[name]) / unit
            return max(0.0, seconds) if math.isfinite(seconds) else None
    try:
        return max(0.0, parsedate_to_datetime(headers["retry-after"]).timestamp() - time.time())
    except (KeyError, ValueError):
        return None
