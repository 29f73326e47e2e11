"""AsyncEngine: one thread owns decoder, cache and scheduler; requests come from any number of threads and tasks."""

from __future__ import annotations

import asyncio
import functools
import gc
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from asyncthink.engine.owner import EngineStoppedError, Errand, Owner
from asyncthink.engine.requests import Request
from asyncthink.engine.sampler import ForkJoinSampler
from asyncthink.engine.service_stats import ServiceStats, Tally
from asyncthink.engine.ticket import AsyncEpisodeStream, Batch, Ticket
from asyncthink.engine.warm_up import check_agents
from asyncthink.engine.warm_up import warm_up as record_ahead
from asyncthink.episode.options import Options
from asyncthink.episode.params import SamplingParams
from asyncthink.episode.records import Episode
from asyncthink.protocol.messages import Question
from asyncthink_kernels.openmp import release_team

__all__ = ["AsyncEngine", "AsyncEpisodeStream", "EngineFullError", "EngineStoppedError", "ServiceStats"]

T = TypeVar("T")


class EngineFullError(RuntimeError):
    """As many requests wait as the engine lets wait."""


class AsyncEngine:
    """A sampler that a thread of its own steps while there is work.

    Every request brings its own options (mode, pool, context, join) and parameters. All of them are batched into the
    same forward passes. A request that fails ends alone. What the model itself raises ends all of them with
    :class:`EngineStoppedError`, and the engine is not :attr:`healthy` from then on; nothing waits for ever.

    Python's garbage collector is run once and frozen when the engine starts: a walk through the objects of all imported
    libraries took 170 ms within a step.

    Args:
        sampler: has the decoder, its cache and the default options. Nobody else should step it meanwhile; calls of its
            own methods wait for the thread's step and would be slow.
        max_waiting: requests that may wait for admission; another one raises :class:`EngineFullError`.
        warm_up: on a CPU, decode steps of 1 to so many agents (at most 64) are recorded when the engine starts
            (:mod:`asyncthink.model.recorded`), instead of with the first requests. No result changes, and the cache
            holds nothing of it.
        progress: called with a phrase before each of these, in the engine's thread.

    Attributes:
        warmed: the future of a sentence on what was recorded ahead, or why nothing was.

    >>> from asyncthink import checkpoint_path, SamplingParams
    >>> async def ask(questions):
    ...     async with AsyncEngine.load(checkpoint_path("countdown"), num_pages=256, device="cpu") as engine:
    ...         greedy = SamplingParams(temperature=0.0, max_tokens=8)
    ...         alone = Options(mode="sequential")
    ...         return await asyncio.gather(*(engine.generate(q, greedy, alone) for q in questions))
    >>> [episode.total_tokens for episode in asyncio.run(ask(["2 from 1 1", "3 from 1 2"]))]
    [8, 8]
    """

    def __init__(
        self,
        sampler: ForkJoinSampler,
        *,
        max_waiting: int = 1024,
        warm_up: int = 0,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        if max_waiting < 1:
            raise ValueError(f"max_waiting: expected at least 1, got {max_waiting}")
        check_agents(warm_up)
        self.sampler, self.max_waiting = sampler, max_waiting
        self._tally = Tally()
        release_team()  # of this thread, which loaded the model: those of the engine's thread would make room for them
        gc.collect()
        gc.freeze()
        self._owner = Owner(sampler, self._tally)
        self.warmed: Future[str] = record_ahead(self.call, sampler.decoder, warm_up, progress)

    @classmethod
    def load(
        cls,
        model: str | Path,
        *,
        max_waiting: int = 1024,
        warm_up: int = 0,
        progress: Callable[[str], None] | None = None,
        **options: Any,
    ) -> AsyncEngine:
        """From a folder or hub id; ``options`` are :class:`ForkJoinSampler`'s. Raises ValueError as it does."""
        check_agents(warm_up)  # before seconds of loading
        sampler = ForkJoinSampler(model, progress=progress, **options)
        return cls(sampler, max_waiting=max_waiting, warm_up=warm_up, progress=progress)

    # -- requests: from any thread or task ----------------------------------------------------------------------

    async def generate(
        self, question: Question, params: SamplingParams | None = None, options: Options | None = None
    ) -> Episode:
        """Answer one question. A task that is cancelled cancels its episode.

        Raises:
            ValueError: as :meth:`ForkJoinSampler.request` does.
            EngineFullError, EngineStoppedError: the request was not taken; or the model raised while it ran.
        """
        return await asyncio.wrap_future(self.submit(self.sampler.request(question, params, options)))

    def stream(
        self, question: Question, params: SamplingParams | None = None, options: Options | None = None
    ) -> AsyncEpisodeStream:
        """The events of one question, for the running event loop. Raises as :meth:`generate` does."""
        return self.stream_request(self.sampler.request(question, params, options))

    def stream_request(self, request: Request) -> AsyncEpisodeStream:
        """As :meth:`stream`, for a request that is encoded already."""
        return AsyncEpisodeStream(functools.partial(self._take, request), self._owner.cancel)

    def submit(self, request: Request) -> Future[Episode]:
        """The future of an episode, for threads without an event loop. Cancelling it cancels the episode."""
        return self._take(request).future

    def call(self, work: Callable[[], T]) -> Future[T]:
        """Run ``work`` in the engine's thread, between steps and holding the decoder's gate.

        Steps follow if ``work`` has put something into the scheduler. What it raises is the future's exception, and
        harms nothing else. Raises EngineStoppedError.
        """
        future: Future[T] = Future()

        def run() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(work())
                except Exception as error:
                    future.set_exception(error)

        self._owner.post(Errand(run, future.set_exception))
        return future

    # -- the engine itself --------------------------------------------------------------------------------------

    @property
    def healthy(self) -> bool:
        """Whether the model has never raised, and the thread is alive."""
        return self.failure is None and self._owner.alive

    @property
    def ready(self) -> bool:
        """Whether the engine works and has recorded what it was to record ahead. Requests are taken before, too."""
        return self.healthy and self.warmed.done()

    @property
    def failure(self) -> BaseException | None:
        """What the model raised, if it did."""
        return self._owner.failure

    @property
    def paused(self) -> bool:
        """Whether :meth:`pause` holds the steps."""
        return self._owner.paused

    def stats(self) -> ServiceStats:
        """Figures of now, and counts since the start. Any thread may call this; it waits for the end of a step."""
        return self.snapshot().result()

    def snapshot(self) -> Future[ServiceStats]:
        """The future of :meth:`stats`."""

        future: Future[ServiceStats] = Future()

        def take() -> None:
            with self._owner.door:
                queued = self._owner.queued
            figures = functools.partial(self._tally.snapshot, self.sampler, queued)
            future.set_result(figures(healthy=self.healthy, paused=self.paused))

        self._owner.post(Errand(take, lambda error: take()))
        return future

    def pause(self) -> None:
        """Make no more steps. Episodes keep what they have; new ones wait. Returns once no step is running."""
        self.call(functools.partial(setattr, self._owner, "paused", True)).result()

    def resume(self) -> None:
        """Go on after :meth:`pause`."""
        self.call(functools.partial(setattr, self._owner, "paused", False)).result()

    def change_weights(self, change: Callable[[], T]) -> Future[T]:
        """Run ``change``, which writes the model's weights, between two steps.

        Running episodes keep the tokens that they drew; all K and V are computed again from the new weights.
        """

        def work() -> T:
            try:
                return change()
            finally:
                for run in self.sampler.scheduler.withdraw():
                    run.release()
                self.sampler.decoder.refresh()
                self.sampler.prefixes.drop_stale()

        return self.call(work)

    def close(self, *, drain: bool = True, timeout: float | None = None) -> None:
        """Take no more requests; finish those there are, or cancel them; release all pages; end the thread.

        Args:
            drain: finish them. Paused ones go on.
            timeout: seconds after which those still running are cancelled.
        """
        self._owner.close(drain=drain, timeout=timeout)

    async def aclose(self, *, drain: bool = True, timeout: float | None = None) -> None:
        """As :meth:`close`, without blocking the event loop."""
        await asyncio.to_thread(self.close, drain=drain, timeout=timeout)

    def __enter__(self) -> AsyncEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close(drain=False)

    async def __aenter__(self) -> AsyncEngine:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose(drain=False)

    # -- taking requests ----------------------------------------------------------------------------------------

    def _take(
        self,
        request: Request,
        loop: asyncio.AbstractEventLoop | None = None,
        receive: Callable[[Batch], None] | None = None,
    ) -> Ticket:
        ticket = Ticket(request, loop, receive)
        with self._owner.door:
            waiting = self._owner.queued + len(self.sampler.scheduler.waiting)
            if waiting >= self.max_waiting:
                raise EngineFullError(f"expected fewer than {self.max_waiting} waiting requests, got {waiting}")
            self._owner.put(ticket)
        ticket.future.add_done_callback(lambda future: self._owner.cancel(ticket) if future.cancelled() else None)
        return ticket
