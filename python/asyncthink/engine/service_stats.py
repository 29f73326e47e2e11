"""What an engine that serves requests has done and is doing, in numbers."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field

from asyncthink.engine.run import EpisodeRun
from asyncthink.engine.sampler import ForkJoinSampler
from asyncthink.engine.stats import EngineStats
from asyncthink.episode.records import Episode


@dataclass(frozen=True, slots=True)
class ServiceStats:
    """Figures of one moment, and counts since the start.

    ``waiting`` requests are not admitted yet, ``running`` episodes are, with ``agents`` that are not done and ``pages``
    that no head could give up for others. Tokens and steps are in ``engine``. ``finished`` counts the ``episodes`` that
    have ended by how they did (:data:`asyncthink.episode.records.FINISHES`); ``critical_path`` is the sum of theirs, in
    tokens. ``uptime`` is in seconds.
    """

    healthy: bool
    paused: bool
    uptime: float
    waiting: int
    running: int
    agents: int
    pages: int
    episodes: int
    forks: int
    joins: int
    format_errors: int
    critical_path: int
    finished: dict[str, int]
    engine: EngineStats


@dataclass(slots=True)
class Tally:
    """Counts of the episodes that have ended."""

    started: float = field(default_factory=time.monotonic)
    episodes: int = 0
    forks: int = 0
    joins: int = 0
    format_errors: int = 0
    critical_path: int = 0
    finished: Counter[str] = field(default_factory=Counter)

    def ended(self, episode: Episode) -> None:
        """An episode is over."""
        self.episodes += 1
        self.forks += episode.forks
        self.joins += episode.joins
        self.format_errors += len(episode.format_errors)
        self.critical_path += episode.critical_path_tokens
        self.finished[episode.finish] += 1

    def snapshot(self, sampler: ForkJoinSampler, queued: int, *, healthy: bool, paused: bool) -> ServiceStats:
        """The figures of now; ``queued`` requests have not reached the scheduler. No step may be under way."""
        scheduler, cache, engine = sampler.scheduler, sampler.cache, sampler.engine.stats
        episodes = [run for run in scheduler.running if isinstance(run, EpisodeRun)]
        return ServiceStats(
            healthy=healthy,
            paused=paused,
            uptime=time.monotonic() - self.started,
            waiting=queued + len(scheduler.waiting),
            running=len(scheduler.running),
            agents=sum(not speaker.done for run in episodes for speaker in run.core.speakers),
            pages=cache.used_pages - sampler.prefixes.heads.evictable_pages,
            episodes=self.episodes,
            forks=self.forks,
            joins=self.joins,
            format_errors=self.format_errors,
            critical_path=self.critical_path,
            finished=dict(self.finished),
            engine=engine,
        )
