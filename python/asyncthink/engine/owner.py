"""The thread that owns a sampler: takes work from an inbox, steps, and hands out the news of each step."""

from __future__ import annotations

import contextlib
import functools
import queue
import threading
from collections.abc import Callable
from typing import NamedTuple

from asyncthink.engine.sampler import ForkJoinSampler
from asyncthink.engine.service_stats import Tally
from asyncthink.engine.ticket import Ticket, deliver


class EngineStoppedError(RuntimeError):
    """The engine takes no requests: it was closed, or the model raised. ``__cause__`` is what the model raised."""


class Errand(NamedTuple):
    """Something for the thread to do between steps; ``refuse`` is called instead if it has ended."""

    run: Callable[[], None]
    refuse: Callable[[EngineStoppedError], None]


class Owner:
    """See the module. :meth:`post` and :meth:`cancel` may be called by any thread, the rest of it is the thread's own.

    What a step raises is kept in :attr:`failure`: all requests end with it, and the thread ends.
    """

    def __init__(self, sampler: ForkJoinSampler, tally: Tally) -> None:
        self.failure: BaseException | None = None
        self.paused = False
        self.queued = 0  # tickets that were posted and have not started; under `door`
        self.door = threading.Lock()
        self._sampler, self._tally = sampler, tally
        self._open = True  # under `door`
        self._closing = False
        self._live: list[Ticket] = []
        self._inbox: queue.SimpleQueue[Errand] = queue.SimpleQueue()  # put may be called by a garbage collector
        self._thread = threading.Thread(target=self._serve, name="asyncthink-engine", daemon=True)
        self._thread.start()

    # -- from any thread ----------------------------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def post(self, errand: Errand) -> None:
        """Have ``errand`` run between steps."""
        with self.door:
            if self._open:
                self._inbox.put(errand)
                return
        errand.refuse(self.stopped())

    def put(self, ticket: Ticket) -> None:
        """Start a ticket between steps. The caller holds the door. Raises EngineStoppedError."""
        if not self._open:
            raise self.stopped()
        self.queued += 1
        self._inbox.put(Errand(functools.partial(self._start, ticket), functools.partial(self._refuse, ticket)))

    def cancel(self, ticket: Ticket) -> None:
        """End a ticket's episode between steps. A garbage collector may call this: it takes no lock."""
        self._inbox.put(Errand(functools.partial(self._drop, ticket), lambda error: None))

    def stopped(self) -> EngineStoppedError:
        """The error of a request that comes too late."""
        error = self.failure
        stopped = EngineStoppedError("the engine is closed" if error is None else f"the model failed: {error}")
        stopped.__cause__ = error
        return stopped

    def close(self, *, drain: bool, timeout: float | None) -> None:
        """Refuse new work, finish or drop what there is, and wait for the thread's end."""
        with self.door:
            self._open = False
        self._inbox.put(Errand(functools.partial(self._end, drain), lambda error: None))
        self._thread.join(timeout)
        if self._thread.is_alive():
            self._inbox.put(Errand(functools.partial(self._end, False), lambda error: None))
            self._thread.join()

    # -- in the thread ------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        gate = self._sampler.decoder.gate
        try:
            while not (self._closing and self._idle):
                errands = self._errands()
                with gate.enter():
                    for errand in errands:
                        errand.run()
                    if not self._idle and not self.paused:
                        self._sampler.engine.step()
                self._hand_out()
        except BaseException as error:  # anything else would leave callers waiting for ever
            self.failure = error
        with self.door:
            self._open = False
        self._release()

    @property
    def _idle(self) -> bool:
        return self._sampler.scheduler.idle

    def _errands(self) -> list[Errand]:
        """All errands there are. Waits for one if there is nothing else to do."""
        errands: list[Errand] = []
        if (self._idle or self.paused) and not (self._closing and self._idle):
            errands.append(self._inbox.get())
        with contextlib.suppress(queue.Empty):
            while True:
                errands.append(self._inbox.get_nowait())
        return errands

    def _start(self, ticket: Ticket) -> None:
        with self.door:
            self.queued -= 1
        if ticket.future.done():  # cancelled before it began
            return
        try:
            ticket.run = self._sampler.start(ticket.request, ticket.listener)
        except Exception as error:
            ticket.settle(error)
        self._live.append(ticket)

    def _refuse(self, ticket: Ticket, error: EngineStoppedError) -> None:
        with self.door:
            self.queued -= 1
        ticket.settle(error)
        deliver([ticket])

    def _drop(self, ticket: Ticket) -> None:
        if ticket.run is not None and not ticket.run.done:
            self._sampler.engine.drop(ticket.run)
        elif ticket.run is None:
            ticket.future.cancel()

    def _hand_out(self) -> None:
        """Settle the tickets that are done, and deliver everybody's news."""
        for ticket in self._live:
            if ticket.run is not None and ticket.run.done:
                self._tally.ended(ticket.run.core.episode)
                ticket.settle()
        for ticket in deliver(self._live):
            self.cancel(ticket)
        self._live = [ticket for ticket in self._live if not ticket.future.done()]

    def _end(self, drain: bool) -> None:
        self._closing, self.paused = True, False
        if not drain:
            for run in [*self._sampler.scheduler.running, *self._sampler.scheduler.waiting]:
                self._sampler.engine.drop(run)

    def _release(self) -> None:
        """The thread ends: settle all tickets, and return all pages."""
        error = self.stopped()
        with self._sampler.decoder.gate.enter():
            self._sampler.engine.abandon([*self._sampler.scheduler.running, *self._sampler.scheduler.waiting])
            self._sampler.prefixes.clear()
        for ticket in self._live:
            ticket.settle(error)
        deliver(self._live)
        self._live.clear()
        with contextlib.suppress(queue.Empty):
            while True:
                self._inbox.get_nowait().refuse(error)
