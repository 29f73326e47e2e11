"""One agent's request under way, and the tokens that have come of it and are not taken yet."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque

from asyncthink.engine.remote.transport import Ask, Transport
from asyncthink.protocol.guide import Rule


class Line:
    """A task that reads a transport's chunks; ``news`` is set whenever something has come, and at the end.

    ``over``: nothing more comes; ``error`` is what the transport raised, if it did. Tokens that came before are there.
    """

    def __init__(self, transport: Transport, ask: Ask, news: asyncio.Event) -> None:
        self.ask, self.taken = ask, 0
        self.drawn: deque[tuple[int, float]] = deque()
        self.over = False
        self.error: Exception | None = None
        self._news = news
        self._task = asyncio.create_task(self._read(transport))

    def fits(self, length: int, rule: Rule | None) -> bool:
        """Whether its next token is drawn behind a context of ``length`` tokens, under ``rule``."""
        return length == len(self.ask.prompt) + self.taken and rule == self.ask.rule

    def take(self) -> tuple[int, float]:
        """The next token that has come, and its log-probability."""
        self.taken += 1
        return self.drawn.popleft()

    def cancel(self) -> asyncio.Task[None]:
        """End the request; the task is over when the transport has closed it."""
        self._task.cancel()
        return self._task

    async def _read(self, transport: Transport) -> None:
        try:
            async with contextlib.aclosing(transport.draw(self.ask)) as chunks:
                async for chunk in chunks:
                    self.drawn.extend(zip(chunk.tokens, chunk.logprobs, strict=True))
                    self._news.set()
        except Exception as error:
            self.error = error
        finally:
            self.over = True
            self._news.set()
