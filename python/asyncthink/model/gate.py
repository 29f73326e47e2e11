"""A lock over the state that the samplers of one decoder share: its cache, its model, their schedulers."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol


class User(Protocol):
    """A user of the shared state."""

    @property
    def idle(self) -> bool: ...


class Gate:
    """A lock that refuses reentry, and a queue of work for its holder.

    A second thread waits at :meth:`enter`, and gets its turn when the holder leaves: a thread that steps in a loop does
    not keep the others out. The holding thread itself (a listener that calls its sampler again) gets a RuntimeError
    there, because its step is not complete. ``users`` share the guarded state; what they have in common beside the
    decoder is in ``shared``, by its type.

    >>> gate, order = Gate(), []
    >>> with gate.enter():
    ...     gate.later(lambda: order.append("after"))
    ...     order.append("inside")
    >>> order
    ['inside', 'after']
    """

    def __init__(self) -> None:
        self.users: weakref.WeakSet[User] = weakref.WeakSet()
        self.shared: dict[type, Any] = {}
        self._lock = threading.RLock()
        self._turn = threading.Lock()  # held by the thread that is next
        self._owner: int | None = None  # the thread inside; written by the one that holds the lock
        self._waiting: deque[Callable[[], object]] = deque()

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Hold the gate. Raises RuntimeError in the thread that already holds it."""
        if self._owner == threading.get_ident():
            raise RuntimeError(
                "sampler: expected a call from outside, got one from within its own step "
                "(a listener may not call the sampler that calls it)"
            )
        try:
            with self._turn:
                self._lock.acquire()
            try:
                self._owner = threading.get_ident()
                try:
                    yield
                finally:
                    self._owner = None
            finally:
                self._lock.release()
        finally:
            self._drain()

    def later(self, work: Callable[[], object]) -> None:
        """Run ``work`` inside the gate: at once if the gate is free, else when its holder catches up or leaves.

        It never waits, so a garbage collector may call it at any point of any thread.
        """
        self._waiting.append(work)
        self._drain()

    def catch_up(self) -> None:
        """Run the queued work. For the holder, between steps."""
        while self._waiting:  # only the holder removes items
            self._waiting.popleft()()

    def _drain(self) -> None:
        # If the gate is taken, its holder runs the work: it calls this method after it has released the lock.
        while self._waiting and self._lock.acquire(blocking=False):
            try:
                if self._owner is not None:  # this thread itself
                    return
                self._owner = threading.get_ident()
                try:
                    self.catch_up()
                finally:
                    self._owner = None
            finally:
                self._lock.release()
