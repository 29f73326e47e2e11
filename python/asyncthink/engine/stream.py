"""One episode as an iterator over its events."""

from __future__ import annotations

import functools
import weakref
from collections import deque
from collections.abc import Callable, Iterator

from asyncthink.engine.local import LocalEngine
from asyncthink.engine.run import EpisodeRun
from asyncthink.episode.recorder import Listener
from asyncthink.episode.records import Event, TokenEvent


class EpisodeStream(Iterator[Event | TokenEvent]):
    """Events of one running episode. :attr:`episode` grows with them, and is complete when the iterator ends.

    Closing the stream, or dropping the last reference to it, cancels its episode and releases its pages: at once, or
    as soon as another call on the same decoder has finished.

    Args:
        engine: runs the episode.
        make: makes the episode's run, for a listener.
    """

    def __init__(self, engine: LocalEngine, make: Callable[[Listener], EpisodeRun]) -> None:
        self._engine = engine
        self._events: deque[Event | TokenEvent] = deque()
        # The run refers to the events, never to the stream, so that a stream without references can be collected.
        self._run = make(self._events.append)
        self.episode = self._run.core.episode
        engine.scheduler.waiting.append(self._run)
        self._cancel = weakref.finalize(self, engine.gate.later, functools.partial(engine.drop, self._run))
        self._cancel.atexit = False

    def __next__(self) -> Event | TokenEvent:
        while not self._events:
            if self._run.done:
                raise StopIteration
            with self._engine.gate.enter():
                if not self._events and not self._run.done:
                    self._engine.step()
        return self._events.popleft()

    def close(self) -> None:
        """Cancel the episode, if it still runs, and release its pages."""
        self._cancel()

    def __enter__(self) -> EpisodeStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
