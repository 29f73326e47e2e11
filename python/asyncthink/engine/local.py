"""The engine of one machine. A step: schedule, run the model, draw, advance the episodes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from asyncthink.engine.guided import GuidedLogits
from asyncthink.engine.jobs import Job, Participant, Spare
from asyncthink.engine.labels import label
from asyncthink.engine.prefix_cache import PrefixCache
from asyncthink.engine.rows import Draw, Drawing, draw_rows, rows_of
from asyncthink.engine.run import EpisodeRun
from asyncthink.engine.sampling import draw
from asyncthink.engine.scheduler import Scheduler, Work
from asyncthink.engine.stats import EngineStats
from asyncthink.engine.tools import results, wait_for_result
from asyncthink.model.contract import BranchDecoder
from asyncthink.model.gate import Gate
from asyncthink_kernels.cache import OutOfPages
from asyncthink_kernels.openmp import Neighbours


def draw_tokens(logits: Tensor, runs: Sequence[Job], agents: Sequence[Participant]) -> Sequence[tuple[int, float]]:
    """Draw by the parameters of each job, keyed by its seed and the agent's key."""
    numbers, positions = zip(*(agent.key for agent in agents), strict=True)
    return list(zip(*draw(logits, [run.params for run in runs], numbers, positions), strict=True))


class LocalEngine:
    """Runs episodes and other jobs on a decoder. The caller of a method holds the decoder's gate.

    An exception in one job ends that job as "failed". An agent whose logits are not finite ends; its episode
    continues. An exception of the model ends all running jobs as "cancelled".

    Args:
        decoder: the model and its cache.
        prefixes: heads of contexts in that cache.
        guided: takes tokens out of the logits that guides forbid.
        draw: draws the tokens.
        max_rows, max_episodes: see :class:`asyncthink.engine.scheduler.Scheduler`.
    """

    def __init__(
        self,
        decoder: BranchDecoder,
        prefixes: PrefixCache,
        guided: GuidedLogits,
        draw: Draw = draw_tokens,
        *,
        max_rows: int,
        max_episodes: int,
    ) -> None:
        self.decoder, self.prefixes = decoder, prefixes
        self.spares: list[Spare] = [prefixes.heads]
        self.scheduler = Scheduler(
            decoder.cache,
            lambda: sum(s.evictable_pages for s in self.spares),
            max_rows=max_rows,
            max_episodes=max_episodes,
        )
        self.draw, self.guided = draw, guided
        self._steps = self._drawn = 0
        self._neighbours = Neighbours()
        self.gate.users.add(self.scheduler)

    @property
    def gate(self) -> Gate:
        """The lock over the decoder's state."""
        return self.decoder.gate

    @property
    def stats(self) -> EngineStats:
        """What the engine did so far, and what it holds now. The caller holds the gate, or no step is under way."""
        cache, prefixes, scheduler = self.decoder.cache, self.prefixes, self.scheduler
        heads = prefixes.heads
        return EngineStats(
            steps=self._steps,
            drawn_tokens=self._drawn,
            prompt_tokens=prefixes.prompt_tokens,
            prefix_tokens=prefixes.prefix_tokens,
            saved_tokens=prefixes.saved_tokens,
            copied_tokens=prefixes.copied_tokens,
            waiting=len(scheduler.waiting),
            running=len(scheduler.running),
            preemptions=scheduler.preemptions,
            heads=len(heads),
            pinned=len(heads.pinned),
            head_pages=cache.pages_seen(heads.branches),
            evictions=heads.evictions,
            free_pages=cache.free_pages,
            num_pages=cache.num_pages,
            **{"passes": self._steps, **self.decoder.counts()},
        )

    def step(self) -> int:
        """One forward pass that advances every runnable agent; returns the number of new tokens computed."""
        try:
            with self._neighbours.step():
                work = self._step()
        except BaseException:
            self.abandon(list(self.scheduler.running))
            raise
        self.scheduler.retire()
        return sum(count for _, _, count in work)

    def drop(self, run: Job, reason: str = "cancelled") -> None:
        """End a job in any state, and release its pages."""
        try:
            run.end(reason)
        finally:
            run.release()
            self.scheduler.forget(run)

    def abandon(self, runs: Iterable[Job]) -> None:
        """Cancel the jobs that are not done. Their listeners are not called."""
        for run in runs:
            run.mute()
            self.drop(run)

    def prepare_prefixes(self, names: Iterable[str]) -> None:
        """Cache these templates' prefixes for the current weights. Without free pages the agents compute them."""
        with contextlib.suppress(OutOfPages):
            self.prefixes.prepare(names)

    # -- one step -----------------------------------------------------------------------------------------------

    def _step(self) -> Work:
        with label("schedule"):
            work = self._schedule()
        drawing, logits = self._run(work)
        with label("guide"):
            logits = self.guided(logits, drawing)
        with label("draw"):
            drawn = draw_rows(self.draw, drawing, logits)
        with label("parse"):
            self._advance(drawing, drawn)
        return work

    def _schedule(self) -> Work:
        """Admit episodes, carry out ready joins, and choose the agents that step. Without free pages, make room."""
        admitted = self.scheduler.admit()
        if admitted:
            self.prepare_prefixes(())  # if the weights have changed since the episodes were submitted
        for run in admitted:
            self._guard(run, run.start)
        for episode in self._episodes:
            for number, text in results(episode):
                self._guard(episode, episode.told, number, text)
        while self.scheduler.running:
            work = self.scheduler.select() if self._enter_joins() else None
            if work is None:
                self._make_room()
            elif work or all(run.done for run in self.scheduler.running):
                return work
            elif wait_for_result(self._episodes):
                return []  # the next step enters the result
            else:
                raise RuntimeError("no agent can step and none made room: the scheduler lost one")
        return []

    def _run(self, work: Work) -> tuple[Drawing, Tensor]:
        """Compute the chosen tokens -> the agents that draw, and their logits [N, V]."""
        if not work:
            return [], torch.empty(0, 0, device="cpu")
        with label("plan"):
            plan = self.decoder.cache.plan([(agent.branch, count) for _, agent, count in work])
        self._count_copies(work, plan)
        rows = rows_of(work)
        with label("model"):
            logits = self.decoder.forward(torch.tensor(rows.tokens, device="cpu"), plan, rows.wanted)
        for _, agent, count in work:
            agent.entered(count)
            if self.decoder.cache.at_mark(agent.branch, agent.marks):
                self.decoder.cache.snapshot(agent.branch)
        self._steps += 1
        for (run, agent), part in rows.scored(logits):
            self._guard(run, run.score, agent, part)
        return rows.drawing, logits[: len(rows.drawn)]

    def _count_copies(self, work: Work, plan: Any) -> None:
        """Tell episodes how many bytes of K/V and of recurrent states their forks copy in this step."""
        for copied in self.decoder.copied(plan):
            run = work[copied.place][0]
            if isinstance(run, EpisodeRun):
                run.core.episode.kv_bytes_copied += copied.kv_bytes
                run.core.episode.state_bytes_copied += copied.state_bytes

    def _advance(self, drawing: Drawing, drawn: Sequence[tuple[int, float] | None]) -> None:
        """Pass each drawn token to its job; then end the step for all jobs."""
        self._drawn += len(drawing)
        for (run, agent), token in zip(drawing, drawn, strict=True):
            self._guard(run, run.accept, agent, token)
        for run in self.scheduler.running:
            self._guard(run, run.tick)

    # -- helpers ------------------------------------------------------------------------------------------------

    def _enter_joins(self) -> bool:
        """Carry out the forks and joins that are ready; False if the pages do not suffice."""
        entered = True
        while entered:  # what has entered may be what another fork or join waits for
            entered = False
            for run in self.scheduler.running:
                run.fork_ready()
                for agent in run.agents:
                    while (splice := run.ready_splice(agent)) is not None:
                        worker = run.agents[splice.worker].branch
                        try:
                            self.decoder.join(agent.branch, worker, splice.start, splice.stop, splice.mode)
                        except OutOfPages:
                            return False
                        run.spliced(agent, splice)
                        entered = True
        return True

    def _make_room(self) -> None:
        """Evict what no job needs; without any, pause the newest job, or end it if it is the only one."""
        if not self.scheduler.lacks_states and any(spare.evict() for spare in self.spares):
            return
        self.scheduler.lacks_states = False
        victim = self.scheduler.victim()
        if victim is None:
            self.drop(self.scheduler.running[-1], "out_of_pages")
        else:
            victim.release()

    @property
    def _episodes(self) -> list[EpisodeRun]:
        """The running jobs that may wait for a tool."""
        return [run for run in self.scheduler.running if isinstance(run, EpisodeRun)]

    def _guard(self, run: Job, call: Callable[..., None], *args: object) -> None:
        """Call a method of a job. An exception ends this job alone."""
        try:
            call(*args)
        except Exception as error:
            run.crash(error)
        if run.done:
            run.release()
