"""One thread at a time in the state that samplers of one decoder share: its cache, its model, their schedulers."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol


class User(Protocol):
    """Something that works on what the gate guards."""

    @property
    def idle(self) -> bool: ...


class Gate:
    """A lock that is not entered twice, and work that waits until the holder leaves.

    A second thread waits at :meth:`enter`. The thread that is inside already (a listener that calls its sampler again)
    gets a RuntimeError: its step is half done. ``users`` are those who work on what the gate guards.

    >>> gate, order = Gate(), []
    >>> with gate.enter():
    ...     gate.later(lambda: order.append("after"))
    ...     order.append("inside")
    >>> order
    ['inside', 'after']
    """

    def __init__(self) -> None:
        self.users: weakref.WeakSet[User] = weakref.WeakSet()
        self._lock = threading.RLock()
        self._inside = False  # read and written by the thread that holds the lock
        self._waiting: deque[Callable[[], object]] = deque()

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Hold the gate. Raises RuntimeError in the thread that holds it already."""
        try:
            with self._lock:
                if self._inside:
                    raise RuntimeError(
                        "sampler: expected a call from outside, got one from within its own step "
                        "(a listener may not call the sampler that calls it)"
                    )
                self._inside = True
                try:
                    yield
                finally:
                    self._inside = False
        finally:
            self._drain()

    def later(self, work: Callable[[], object]) -> None:
        """Run ``work`` inside the gate: at once if nobody is in it, else when the holder catches up or leaves.

        Never waits, so a garbage collector may call it at any point of any thread.
        """
        self._waiting.append(work)
        self._drain()

    def catch_up(self) -> None:
        """For the holder, at a point where nothing is half done: run what waits."""
        while self._waiting:  # only the holder takes from it
            self._waiting.popleft()()

    def _drain(self) -> None:
        # Whoever adds work and finds the gate taken leaves it to the holder, who looks after letting go.
        while self._waiting and self._lock.acquire(blocking=False):
            try:
                if self._inside:
                    return
                self._inside = True
                try:
                    self.catch_up()
                finally:
                    self._inside = False
            finally:
                self._lock.release()
