"""What an engine has done and is doing, in numbers."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from dataclasses import dataclass, field

from asyncthink.engine.sampler import ForkJoinSampler
from asyncthink.episode.records import Episode


@dataclass(frozen=True, slots=True)
class ServiceStats:
    """Figures of one moment, and counts since the start.

    ``waiting`` requests are not admitted yet, ``running`` episodes are, with ``agents`` that are not done. Times are in
    seconds. ``computed`` tokens went through the model (prompts, drawn and inserted tokens); ``drawn`` ones were drawn.
    ``finished`` counts episodes by how they ended (:data:`asyncthink.episode.records.FINISHES`).
    """

    healthy: bool
    paused: bool
    uptime: float
    waiting: int
    running: int
    agents: int
    pages: int
    pages_used: int
    steps: int
    computed: int
    preemptions: int
    episodes: int
    drawn: int
    forks: int
    joins: int
    format_errors: int
    critical_path: int
    finished: dict[str, int]


@dataclass(slots=True)
class Tally:
    """Counts of an engine's steps and of the episodes that have ended. Written by the engine's thread."""

    started: float = field(default_factory=time.monotonic)
    steps: int = 0
    computed: int = 0
    episodes: int = 0
    drawn: int = 0
    forks: int = 0
    joins: int = 0
    format_errors: int = 0
    critical_path: int = 0
    finished: Counter[str] = field(default_factory=Counter)

    def step(self, computed: int) -> None:
        """A step has computed that many tokens."""
        self.steps += 1
        self.computed += computed

    def ended(self, episode: Episode) -> None:
        """An episode is over."""
        self.episodes += 1
        self.drawn += episode.total_tokens
        self.forks += episode.forks
        self.joins += episode.joins
        self.format_errors += len(episode.format_errors)
        self.critical_path += episode.critical_path_tokens
        self.finished[episode.finish] += 1

    def snapshot(self, sampler: ForkJoinSampler, queued: int, *, healthy: bool, paused: bool) -> ServiceStats:
        """The figures of now; ``queued`` requests have not reached the scheduler yet."""
        scheduler, cache = sampler.scheduler, sampler.cache
        counts = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        del counts["started"]
        runs = list(scheduler.running)
        return ServiceStats(
            **counts | {"finished": dict(self.finished)},
            healthy=healthy,
            paused=paused,
            uptime=time.monotonic() - self.started,
            waiting=queued + len(scheduler.waiting),
            running=len(runs),
            agents=sum(not speaker.done for run in runs for speaker in list(run.core.speakers)),
            pages=cache.num_pages,
            pages_used=cache.used_pages,
            preemptions=scheduler.preemptions,
        )
