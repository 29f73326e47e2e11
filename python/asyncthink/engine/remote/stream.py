"""The events of one episode on a server, as an iterator."""

from __future__ import annotations

import queue
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import TypeAlias

from asyncthink.episode.recorder import Listener
from asyncthink.episode.records import Episode, Event, TokenEvent

News: TypeAlias = Event | TokenEvent | None


class RemoteStream(Iterator[Event | TokenEvent]):
    """Events of one running episode. :attr:`episode` grows with them, and is complete when the iterator ends.

    Closing the stream, or dropping the last reference to it, cancels the episode and its requests. The iterator raises
    what :meth:`.sampler.RemoteSampler.generate` raises.

    Args:
        start: starts the episode, for a listener; returns its record, which grows, and a future that ends with it.
    """

    def __init__(self, start: Callable[[Listener], tuple[Episode, Future[None]]]) -> None:
        news: queue.SimpleQueue[News] = queue.SimpleQueue()
        self.episode, self._future = start(news.put)
        self._news = news
        self._future.add_done_callback(lambda future: news.put(None))
        self._cancel = weakref.finalize(self, self._future.cancel)
        self._cancel.atexit = False

    def __next__(self) -> Event | TokenEvent:
        event = self._news.get()
        if event is not None:
            return event
        self._news.put(None)  # asked once more, it is over once more
        if not self._future.cancelled():
            self._future.result()
        raise StopIteration

    def close(self) -> None:
        """Cancel the episode, if it still runs."""
        self._cancel()

    def __enter__(self) -> RemoteStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
