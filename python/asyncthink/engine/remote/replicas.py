"""Several servers as one transport: an episode keeps to one of them, and goes on at another one when that dies."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from asyncthink.engine.remote.errors import BrokenError
from asyncthink.engine.remote.retries import Retries
from asyncthink.engine.remote.server import Server
from asyncthink.engine.remote.transport import Ask, Chunk


@dataclass(slots=True)
class RemoteStats:
    """What was asked so far.

    ``prompt_tokens`` were sent in ``requests`` (how many of them were computed before, the server's metrics tell).
    ``drawn_tokens`` have come, those that were thrown away included. ``failures`` are connections that broke and
    servers that would not serve; ``moved`` are episodes that went on at another server.
    """

    requests: int = 0
    prompt_tokens: int = 0
    drawn_tokens: int = 0
    failures: int = 0
    moved: int = 0


class Replicas:
    """A transport over servers of the same model.

    A request that fails before its first token is tried again, elsewhere if its server is down. One that fails later
    ends behind the tokens that have come, and the episode's driver asks on from there. So nothing that was drawn is
    lost or counted twice, and where the next draw depends on seed, agent and position, it is the one that it would
    have been.

    Args:
        servers: at least one.
        max_requests: requests under way; others wait here.
        retries: see :class:`Retries`.
    """

    streams = True

    def __init__(self, servers: Sequence[Server], *, max_requests: int = 256, retries: Retries | None = None) -> None:
        self.servers, self.retries = list(servers), retries or Retries()
        self.stats = RemoteStats()
        self._seats = asyncio.Semaphore(max_requests)
        self._homes: dict[str, Server] = {}
        self._down: dict[Server, float] = {}  # until when, by the loop's clock
        self._failed: Counter[Server] = Counter()  # times in a row

    async def draw(self, ask: Ask) -> AsyncGenerator[Chunk, None]:
        """See :class:`.transport.Transport`. Raises RefusedError, UnreachableError."""
        failed, broken = 0, None
        while True:
            server = await self._home(ask.session, broken)
            begun = False
            try:
                async with self._seats, contextlib.aclosing(server.draw(ask)) as chunks:
                    self.stats.requests += 1
                    self.stats.prompt_tokens += len(ask.prompt)
                    async for chunk in chunks:
                        self.stats.drawn_tokens += len(chunk.tokens)
                        if not begun:
                            begun = True
                            self._works(server)
                        yield chunk
                return
            except BrokenError as error:
                failed += 1
                self._breaks(server, error)
                broken = None if error.full else server
                if begun:
                    return
                self.retries.check(failed, error)
                if error.full:
                    await asyncio.sleep(self.retries.seconds(failed) if error.seconds is None else error.seconds)

    def forget(self, session: str) -> None:
        """An episode is over."""
        self._homes.pop(session, None)

    def where(self, session: str) -> str:
        """The address of an episode's server."""
        server = self._homes.get(session)
        return "" if server is None else server.url

    async def _home(self, session: str, broken: Server | None) -> Server:
        """The session's server; if it is down, or was ``broken`` just now, that with the fewest sessions of the others.

        Waits if all are down.
        """
        home = self._homes.get(session)
        if home is not None and home is not broken and self._seconds_down(home) <= 0:
            return home
        await asyncio.sleep(max(min(map(self._seconds_down, self.servers)), 0.0))
        sessions = Counter(self._homes.values())
        server = min(
            self.servers,
            key=lambda server: (self._seconds_down(server) > 0, server is broken, sessions[server]),
        )
        self.stats.moved += home is not None and server is not home
        self._homes[session] = server
        return server

    def _seconds_down(self, server: Server) -> float:
        """For how long a server is left alone yet; 0 and less: not any more."""
        return self._down.get(server, 0.0) - asyncio.get_running_loop().time()

    def _works(self, server: Server) -> None:
        self._failed.pop(server, None)
        self._down.pop(server, None)

    def _breaks(self, server: Server, error: BrokenError) -> None:
        """A server that is full is not down. Another one is left alone, the longer the oftener it fails in a row."""
        self.stats.failures += 1
        if error.full:
            return
        if self._seconds_down(server) > 0:
            return  # other requests of that moment failed with it
        server.forget()
        self._failed[server] += 1
        seconds = self.retries.by_chance(self._failed[server])
        self._down[server] = asyncio.get_running_loop().time() + max(seconds, error.seconds or 0.0)
