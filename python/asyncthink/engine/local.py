"""The engine of one machine: a step schedules, runs the model, draws, and tells every episode what was drawn."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from asyncthink.engine.agent import Agent
from asyncthink.engine.labels import label
from asyncthink.engine.prefix_cache import RoleHeads
from asyncthink.engine.run import EpisodeRun
from asyncthink.engine.sampling import draw, drawable
from asyncthink.engine.scheduler import Scheduler, Work
from asyncthink.episode.wishes import Wish
from asyncthink.model.decoder import Decoder
from asyncthink_kernels.cache import OutOfPages

#: (token, log-probability) for each row of logits [N, V]; the runs and agents are the rows' owners.
Draw = Callable[[Tensor, Sequence[EpisodeRun], Sequence[Agent]], Sequence[tuple[int, float]]]


def draw_tokens(logits: Tensor, runs: Sequence[EpisodeRun], agents: Sequence[Agent]) -> Sequence[tuple[int, float]]:
    """By the parameters of each run, keyed by its seed, the agent's number and the number of its tokens."""
    numbers = [agent.trace.agent for agent in agents], [agent.trace.decoded for agent in agents]
    return list(zip(*draw(logits, [run.core.params for run in runs], *numbers), strict=True))


class LocalEngine:
    """Runs episodes on a decoder. One call at a time: whoever calls holds the decoder's gate.

    An episode on which the program fails ends alone, as "failed"; an agent whose logits are not finite ends alone. What
    the model raises ends all that run, as "cancelled".

    Args:
        decoder: the model and its cache.
        heads: prompt heads in that cache.
        draw: how tokens are drawn.
        max_rows, max_episodes: see :class:`asyncthink.engine.scheduler.Scheduler`.
    """

    def __init__(
        self, decoder: Decoder, heads: RoleHeads, draw: Draw = draw_tokens, *, max_rows: int, max_episodes: int
    ) -> None:
        self.decoder, self.heads = decoder, heads
        self.scheduler = Scheduler(decoder.cache, max_rows=max_rows, max_episodes=max_episodes)
        self.draw = draw
        self._heads_of = decoder.weights_version()  # the weights that computed the heads
        decoder.gate.users.add(self.scheduler)

    def step(self) -> int:
        """One forward pass that advances every runnable agent; returns the number of new tokens computed."""
        try:
            with label("schedule"):
                work = self._schedule()
            self._advance(work)
            with label("parse"):
                for run in self.scheduler.running:
                    self._tell(run, run.core.tick)
        except BaseException:
            self.abandon(list(self.scheduler.running))
            raise
        self.scheduler.retire()
        return sum(count for _, _, count in work)

    def drop(self, run: EpisodeRun, reason: str = "cancelled") -> None:
        """End an episode now, wherever it is, and give its pages back."""
        try:
            run.core.end(reason)
        finally:
            run.release()
            self.scheduler.forget(run)

    def abandon(self, runs: Iterable[EpisodeRun]) -> None:
        """Cancel what is not done, without a word to listeners."""
        for run in runs:
            run.core.record.mute()
            self.drop(run)

    def prepare_heads(self, names: Iterable[str]) -> None:
        """The heads of these templates are in the cache, from the weights of now; without room agents compute them."""
        self.drop_stale_heads()
        with contextlib.suppress(OutOfPages):
            self.heads.prepare(names)

    def drop_stale_heads(self) -> None:
        """Forget the heads if the weights have changed since they were computed."""
        version = self.decoder.weights_version()
        if version != self._heads_of:
            self.heads.clear()
            self._heads_of = version

    # -- one step -----------------------------------------------------------------------------------------------

    def _schedule(self) -> Work:
        """Who steps: episodes are admitted, joins enter, and where pages run out the newest episode makes room."""
        for run in self.scheduler.admit():
            self._tell(run, run.start)
        while self.scheduler.running:
            work = self.scheduler.select() if self._enter_joins() else None
            if work is None:
                self._make_room()
            elif work or all(run.done for run in self.scheduler.running):
                return work
            else:
                raise RuntimeError("no agent can step and none made room: the scheduler lost one")
        return []

    def _enter_joins(self) -> bool:
        """Forks and joins that can be carried out now are; False where a join finds no pages."""
        for run in self.scheduler.running:
            run.settle()
            for agent in run.agents:
                while (splice := run.ready_splice(agent)) is not None:
                    worker = run.agents[splice.worker].branch
                    try:
                        self.decoder.join(agent.branch, worker, splice.start, splice.stop, splice.mode)
                    except OutOfPages:
                        return False
                    run.spliced(agent, splice)
        return True

    def _make_room(self) -> None:
        """Pages ran out: the newest episode is paused, or ended if it is alone."""
        victim = self.scheduler.victim()
        if victim is None:
            self.drop(self.scheduler.running[-1], "out_of_pages")
        else:
            victim.release()

    def _advance(self, work: Work) -> None:
        """Compute what was chosen, draw for those who are to draw, and tell the episodes."""
        if not work:
            return
        with label("plan"):
            plan = self.decoder.cache.plan([(agent.branch, count) for _, agent, count in work])
        drawing: list[tuple[EpisodeRun, Agent]] = []
        rows: list[int] = []  # of the last token of each agent that draws
        tokens: list[int] = []
        for run, agent, count in work:
            draws = agent.draws(count)
            tokens += agent.take(count)
            if draws:
                drawing.append((run, agent))
                rows.append(len(tokens) - 1)
        with label("model"):
            logits = self.decoder.forward(torch.tensor(tokens, device="cpu"), plan, rows)
        with label("draw"):
            drawn = self._drawn(logits, drawing)
        with label("parse"):
            for (run, agent), one in zip(drawing, drawn, strict=True):
                self._tell(run, _accept, run, agent.speaker.number, one)

    def _drawn(self, logits: Tensor, drawing: Sequence[tuple[EpisodeRun, Agent]]) -> Sequence[tuple[int, float] | None]:
        """(token, log-probability) a row, None for rows that cannot be drawn from; those are looked for on failure."""
        if not drawing:
            return []
        runs, agents = zip(*drawing, strict=True)
        try:
            return self.draw(logits, runs, agents)
        except ValueError:
            sound = drawable(logits)
            if all(sound):
                raise
        kept = [row for row, fine in enumerate(sound) if fine]
        if not kept:
            return [None] * len(sound)
        drawn = iter(self.draw(logits[kept], [runs[row] for row in kept], [agents[row] for row in kept]))
        return [next(drawn) if fine else None for fine in sound]

    def _tell(self, run: EpisodeRun, call: Callable[..., Sequence[Wish] | None], *args: object) -> None:
        """Let an episode's core act and carry its wishes out; the trouble of one is not the others'."""
        try:
            run.carry_out(call(*args) or ())
        except Exception as error:
            run.core.crash(error)
        if run.done:
            run.release()


def _accept(run: EpisodeRun, number: int, drawn: tuple[int, float] | None) -> list[Wish]:
    if drawn is None:
        return run.core.fail(number, "its logits hold NaN or no finite value")
    return run.core.accept(number, *drawn)
