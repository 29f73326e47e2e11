"""What the routes share: engine, settings, metrics, and how requests are run."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from asyncthink.engine.async_engine import AsyncEngine, AsyncEpisodeStream
from asyncthink.engine.requests import Request
from asyncthink.episode.records import Episode, Event, TokenEvent
from asyncthink.serve.metrics import Metrics
from asyncthink.serve.settings import Settings


class News(NamedTuple):
    """Events of a choice in one step, or its whole episode at its end."""

    choice: int
    events: list[Event | TokenEvent]
    episode: Episode | None = None


@dataclass(frozen=True, slots=True)
class Service:
    """One server's engine, settings and metrics."""

    engine: AsyncEngine
    settings: Settings
    metrics: Metrics

    async def run(self, requests: Sequence[Request]) -> list[Episode]:
        """The episodes of all requests. If one fails, or the caller is cancelled, the others are cancelled."""
        async with asyncio.timeout(self.settings.limits.seconds), self.streams(requests) as streams:
            async with contextlib.aclosing(self.news(streams)) as news:
                episodes = {choice: episode async for choice, _, episode in news if episode is not None}
            return [episodes[choice] for choice in range(len(streams))]

    async def news(self, streams: Sequence[AsyncEpisodeStream]) -> AsyncGenerator[News]:
        """The news of all streams as they come; the last of each is its whole episode."""
        watches = [self.metrics.watch() for _ in streams]
        async with contextlib.aclosing(_batches(streams)) as batches:
            async for number, events in batches:
                if events:
                    watches[number].heard(events)
                    yield News(number, events)
                else:
                    episode = await streams[number].episode()
                    watches[number].ended(episode)
                    yield News(number, [], episode)

    @contextlib.asynccontextmanager
    async def streams(self, requests: Sequence[Request]) -> AsyncIterator[list[AsyncEpisodeStream]]:
        """A stream for each request, all of them closed at the end. Raises EngineFullError, EngineStoppedError."""
        streams: list[AsyncEpisodeStream] = []
        try:
            for request in requests:  # those before a refusal are closed
                streams.append(self.engine.stream_request(request))  # noqa: PERF401
            yield streams
        finally:
            for stream in streams:
                await stream.aclose()


async def _batches(streams: Sequence[AsyncEpisodeStream]) -> AsyncGenerator[tuple[int, list[Event | TokenEvent]]]:
    """Batches of all streams as they come, each with its stream's number; an empty one is the end of its stream."""
    if len(streams) == 1:  # a task for each batch costs more than the rest of a chunk
        while events := await streams[0].batch():
            yield 0, events
        yield 0, []
        return
    waiting = {asyncio.ensure_future(stream.batch()): number for number, stream in enumerate(streams)}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(done, key=lambda task: waiting[task]):
                number = waiting.pop(task)
                if events := task.result():
                    waiting[asyncio.ensure_future(streams[number].batch())] = number
                yield number, events
    finally:
        for task in waiting:
            task.cancel()
