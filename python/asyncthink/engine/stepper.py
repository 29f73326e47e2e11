"""Runs jobs of an engine to their end, for callers that block and for coroutines: all jobs share the same steps."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Sequence
from concurrent.futures import Future

from asyncthink.engine.jobs import Job
from asyncthink.engine.local import LocalEngine


class Stepper:
    """Steps an engine while somebody waits for its jobs.

    A caller that blocks steps in its own thread; callers in several threads take turns, and each step advances the jobs
    of all. For coroutines one background thread steps; it ends when none of them waits.
    """

    def __init__(self, engine: LocalEngine) -> None:
        self._engine = engine
        self._lock = threading.Lock()  # over the two below
        self._waiting: list[tuple[Sequence[Job], Future[None]]] = []
        self._thread: threading.Thread | None = None

    def run(self, jobs: Sequence[Job]) -> None:
        """Queue the jobs and step until all are done. Raises what the model raised in a step of this thread."""
        self._queue(jobs)
        while not _done(jobs):
            self._step(jobs)

    async def wait(self, jobs: Sequence[Job]) -> None:
        """Queue the jobs and wait until all are done. Raises what the model raised in the step that ended them."""
        future: Future[None] = Future()
        with self._lock:
            self._waiting.append((jobs, future))
            self._queue(jobs)
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="asyncthink steps", daemon=True)
                self._thread.start()
        await asyncio.wrap_future(future)

    def _queue(self, jobs: Sequence[Job]) -> None:
        self._engine.gate.later(functools.partial(self._engine.scheduler.waiting.extend, jobs))

    def _step(self, jobs: Sequence[Job]) -> None:
        with self._engine.gate.enter():
            self._engine.gate.catch_up()
            if not _done(jobs):
                self._engine.step()

    def _serve(self) -> None:
        """Step while a coroutine waits."""
        while True:
            with self._lock:
                jobs = [job for waited, future in self._waiting if not future.done() for job in waited]
                if _done(jobs):
                    self._settle(None)
                if not self._waiting:
                    self._thread = None
                    return
            try:
                self._step(jobs)
                error = None
            except BaseException as raised:
                error = raised
            with self._lock:
                self._settle(error)

    def _settle(self, error: BaseException | None) -> None:
        """Wake the coroutines whose jobs are done, or that have gone."""
        for jobs, future in self._waiting:
            if _done(jobs) and future.set_running_or_notify_cancel():
                if error is None:
                    future.set_result(None)
                else:
                    future.set_exception(error)
        self._waiting = [(jobs, future) for jobs, future in self._waiting if not future.done()]


def _done(jobs: Sequence[Job]) -> bool:
    return all(job.done for job in jobs)
