"""One request on its way through the engine's thread, and its events as an asynchronous iterator."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import Future, InvalidStateError

from asyncthink.engine.requests import Request
from asyncthink.engine.run import EpisodeRun
from asyncthink.episode.records import Episode, Event, TokenEvent

#: The events of one episode in one step, in their order; None once there are no more.
Batch = list[Event | TokenEvent] | None


class Ticket:
    """A request, the future of its episode, and its events. All but the future belongs to the engine's thread.

    Args:
        request: what to run.
        loop, receive: ``receive(batch)`` is called in ``loop`` once for each step with news, and with None at the end.
    """

    def __init__(
        self,
        request: Request,
        loop: asyncio.AbstractEventLoop | None = None,
        receive: Callable[[Batch], None] | None = None,
    ) -> None:
        self.request, self.loop, self.receive = request, loop, receive
        self.future: Future[Episode] = Future()
        self.run: EpisodeRun | None = None
        self.news: list[Event | TokenEvent] = []

    @property
    def listener(self) -> Callable[[Event | TokenEvent], None] | None:
        """What the episode's core calls with each event; None if nobody listens."""
        return self.news.append if self.loop is not None else None

    def settle(self, error: BaseException | None = None) -> None:
        """Fulfil the future, unless its caller has given it up."""
        with contextlib.suppress(InvalidStateError):
            if error is not None or self.run is None:
                self.future.set_exception(error or RuntimeError("the request was never started"))
            else:
                self.future.set_result(self.run.core.episode)


def deliver(tickets: Iterable[Ticket]) -> list[Ticket]:
    """Hand the news of all tickets to their loops, one wake-up for each loop; return those whose loop has closed."""
    mail: dict[asyncio.AbstractEventLoop, list[tuple[Ticket, Batch]]] = {}
    for ticket in tickets:
        if ticket.loop is None:
            continue
        if ticket.news:
            mail.setdefault(ticket.loop, []).append((ticket, ticket.news.copy()))
            ticket.news.clear()
        if ticket.future.done():
            mail.setdefault(ticket.loop, []).append((ticket, None))
    lost: list[Ticket] = []
    for loop, letters in mail.items():
        try:
            loop.call_soon_threadsafe(_hand_out, letters)
        except RuntimeError:  # the loop is closed
            lost += [ticket for ticket, _ in letters]
    return lost


def _hand_out(letters: list[tuple[Ticket, Batch]]) -> None:
    for ticket, batch in letters:
        assert ticket.receive is not None
        ticket.receive(batch)


class AsyncEpisodeStream(AsyncIterator[Event | TokenEvent]):
    """Events of one episode, for the event loop that made it.

    Closing the stream, leaving its ``async with`` block, or dropping the last reference to it cancels the episode and
    releases its pages within a step. The iterator raises what ended the engine, if that ended the episode.

    Args:
        submit: queues the request for (loop, receive).
        cancel: cancels a ticket, from any thread and from a garbage collector.
    """

    def __init__(
        self,
        submit: Callable[[asyncio.AbstractEventLoop, Callable[[Batch], None]], Ticket],
        cancel: Callable[[Ticket], None],
    ) -> None:
        self._batches: asyncio.Queue[Batch] = asyncio.Queue()
        self._events: deque[Event | TokenEvent] = deque()
        # The ticket refers to the queue, never to the stream, so that a stream without references can be collected.
        self.ticket = submit(asyncio.get_running_loop(), self._batches.put_nowait)
        self._over = False
        self._cancel = weakref.finalize(self, cancel, self.ticket)
        self._cancel.atexit = False

    async def batch(self) -> list[Event | TokenEvent]:
        """All events of the next step that has any; an empty list once the episode is over."""
        if not self._over:
            batch = await self._batches.get()
            if batch is not None:
                return batch
            self._over = True
        self.ticket.future.result()  # raises what ended it
        return []

    async def episode(self) -> Episode:
        """The whole episode, once it is over."""
        return await asyncio.wrap_future(self.ticket.future)

    async def __anext__(self) -> Event | TokenEvent:
        if not self._events:
            self._events.extend(await self.batch())
        if not self._events:
            raise StopAsyncIteration
        return self._events.popleft()

    async def aclose(self) -> None:
        """Cancel the episode, if it still runs."""
        self._cancel()

    async def __aenter__(self) -> AsyncEpisodeStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
