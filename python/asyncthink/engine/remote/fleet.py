"""The servers of one model: their connections, what they say of themselves, and the thread in which they are used."""

from __future__ import annotations

import asyncio
import warnings
import weakref
from collections.abc import Sequence
from concurrent.futures import Future
from uuid import uuid4

import httpx

from asyncthink.engine.remote.dialects import DIALECTS
from asyncthink.engine.remote.driver import Driver
from asyncthink.engine.remote.errors import BrokenError, RefusedError, UnreachableError
from asyncthink.engine.remote.loop import LoopThread
from asyncthink.engine.remote.replicas import RemoteStats, Replicas
from asyncthink.engine.remote.retries import Retries
from asyncthink.engine.remote.server import About, Server
from asyncthink.episode.core import EpisodeCore
from asyncthink.episode.options import Guide, JoinMode, Options
from asyncthink.episode.records import Episode


class Fleet:
    """Servers with the same model, which samplers can share.

    Args:
        servers, model, kind, api_key, max_episodes, max_requests, timeout, retries: see
            :class:`asyncthink.engine.remote.sampler.RemoteSampler`.

    Raises:
        ValueError: no addresses, or limits outside their range.
        UnreachableError: no server answers now. RefusedError: one that answers is of no kind that is known.
    """

    def __init__(
        self,
        servers: Sequence[str],
        *,
        model: str | None = None,
        kind: str | None = None,
        api_key: str | None = None,
        max_episodes: int = 64,
        max_requests: int = 256,
        timeout: float = 120.0,
        retries: Retries | None = None,
    ) -> None:
        _check(servers, kind, max_episodes=max_episodes, max_requests=max_requests)
        client = httpx.AsyncClient(
            headers={} if api_key is None else {"authorization": f"Bearer {api_key}"},
            timeout=httpx.Timeout(timeout, connect=10.0, pool=None),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=max_requests),
        )
        many = [Server(url, client, kind=kind, model=model) for url in servers]
        self.replicas = Replicas(many, max_requests=max_requests, retries=retries)
        self._seats = asyncio.Semaphore(max_episodes)
        self._thread = LoopThread()
        self._close = weakref.finalize(self, _close, self._thread, client)
        try:
            self.about = self._thread.submit(_meet(many)).result()
        except BaseException:
            self.close()
            raise

    @property
    def max_length(self) -> int | None:
        """Positions of a context on every server; None where none tells."""
        return min((told.max_length for told in self.about.values() if told.max_length is not None), default=None)

    @property
    def stats(self) -> RemoteStats:
        """What was asked of the servers so far."""
        return self.replicas.stats

    def check(self, options: Options) -> None:
        """Raises ValueError for options that a server does not support."""
        if options.join != JoinMode.EXACT:
            join = str(options.join)
            raise ValueError(f"join: expected 'exact' on servers, whose K and V nobody can join, got {join!r}")
        for url, about in self.about.items():
            if options.guide != Guide.OFF and not DIALECTS[about.kind].guides:
                raise ValueError(
                    f"guide: expected 'off' on {about.kind} at {url} (guides need the token masks of asyncthink "
                    f"serve), got {str(options.guide)!r}"
                )

    def start(self, cores: Sequence[EpisodeCore], order: str) -> Future[None]:
        """Run these episodes. What ends one with an exception ends all; cancelling the future does, too."""
        return self._thread.submit(self._all(cores, order))

    def close(self) -> None:
        """Cancel what runs, and close the connections."""
        self._close()

    async def _all(self, cores: Sequence[EpisodeCore], order: str) -> None:
        tasks = [asyncio.ensure_future(self._run(core, order)) for core in cores]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, core: EpisodeCore, order: str) -> Episode:
        """Run one. If a server refuses a request, the episode ends as "failed", with a warning."""
        session = uuid4().hex
        try:
            async with self._seats:
                await Driver(core, self.replicas, order=order, session=session).run()
        except RefusedError as error:
            warnings.warn(f"an episode failed and was ended: {error}", RuntimeWarning, stacklevel=2)
        finally:
            if not core.done:
                core.end("cancelled")  # it had not begun
            core.episode.meta["server"] = self.replicas.where(session)
            self.replicas.forget(session)
        return core.episode


async def _meet(servers: Sequence[Server]) -> dict[str, About]:
    """What the servers are, by address. One that does not answer now is met when it is asked for tokens."""
    answers = await asyncio.gather(*(server.about() for server in servers), return_exceptions=True)
    errors = [error for error in answers if isinstance(error, BaseException)]
    refused = next((error for error in errors if not isinstance(error, BrokenError)), None)
    if refused is not None:
        raise refused
    if len(errors) == len(answers):
        raise UnreachableError("; ".join(map(str, errors)))
    return {server.url: told for server, told in zip(servers, answers, strict=True) if isinstance(told, About)}


def _close(thread: LoopThread, client: httpx.AsyncClient) -> None:
    thread.close(client.aclose())


def _check(servers: Sequence[str], kind: str | None, **most: int) -> None:
    if isinstance(servers, str) or not servers or not all(isinstance(url, str) for url in servers):
        raise ValueError(f"servers: expected a list of addresses, got {servers!r}")
    for url in servers:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"servers: expected addresses such as http://localhost:8000, got {url!r}")
    if len({url.rstrip("/") for url in servers}) < len(servers):
        raise ValueError(f"servers: expected different addresses, got {', '.join(servers)}")
    if kind is not None and kind not in DIALECTS:
        raise ValueError(f"kind: expected one of {', '.join(DIALECTS)}, got {kind!r}")
    for name, value in most.items():
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
