"""What /metrics tells Prometheus."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from asyncthink.engine.service_stats import ServiceStats
from asyncthink.episode.records import Episode, Event, TokenEvent

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)
_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384)


class Metrics:
    """Histograms of the requests, and the engine's own figures."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self.first = Histogram(
            "asyncthink_time_to_first_token_seconds", "From a request to its first drawn token", buckets=_SECONDS,
            registry=registry,
        )  # fmt: skip
        self.token = Histogram(
            "asyncthink_time_per_token_seconds", "Mean time between an episode's steps after its first token",
            buckets=_TOKEN_SECONDS, registry=registry,
        )  # fmt: skip
        self.path = Histogram(
            "asyncthink_critical_path_tokens", "Critical path of an episode", buckets=_TOKENS, registry=registry
        )
        self.path_seconds = Histogram(
            "asyncthink_critical_path_seconds", "From admission to the answer", buckets=_SECONDS, registry=registry
        )
        self._last: tuple[float, int] | None = None

    def watch(self) -> Watch:
        """The clock of one request that begins now."""
        return Watch(self)

    def text(self, stats: ServiceStats) -> bytes:
        """The page, with the engine's figures of now. Tokens a second are those since the page was last read."""
        now, drawn = time.monotonic(), stats.engine.drawn_tokens
        before, counted = self._last or (now - stats.uptime, 0)
        rate = (drawn - counted) / max(now - before, 1e-9)
        self._last = now, drawn
        figures = CollectorRegistry()
        figures.register(_Figures(stats, rate))
        return generate_latest(figures) + generate_latest(self._registry)


class Watch:
    """Times of one request."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics, self._began = metrics, time.perf_counter()
        self._first: float | None = None
        self._steps = 0

    def heard(self, events: Sequence[Event | TokenEvent]) -> None:
        """One step's events have come."""
        if not any(isinstance(event, TokenEvent) and event.sampled for event in events):
            return
        if self._first is None:
            self._first = time.perf_counter()
            self._metrics.first.observe(self._first - self._began)
        else:
            self._steps += 1

    def ended(self, episode: Episode) -> None:
        """The episode is over."""
        if self._first is not None and self._steps:
            self._metrics.token.observe((time.perf_counter() - self._first) / self._steps)
        self._metrics.path.observe(episode.critical_path_tokens)
        self._metrics.path_seconds.observe(episode.critical_path_seconds)


class _Figures(Collector):
    """The engine's figures of one moment."""

    def __init__(self, stats: ServiceStats, rate: float) -> None:
        self._stats, self._rate = stats, rate

    def collect(self) -> Iterator[Metric]:
        yield from _gauges(self._stats, self._rate)
        yield from _counters(self._stats)


def _gauges(stats: ServiceStats, rate: float) -> Iterable[Metric]:
    values = {
        "healthy": ("1 while the model works", float(stats.healthy)),
        "paused": ("1 while steps are held", float(stats.paused)),
        "waiting_requests": ("Requests that are not admitted yet", stats.waiting),
        "running_episodes": ("Episodes that run", stats.running),
        "running_agents": ("Agents that are not done", stats.agents),
        "pages": ("Pages of the K/V cache", stats.engine.num_pages),
        "pages_held": ("Pages held by running episodes", stats.pages),
        "head_pages": ("Pages held by heads of earlier contexts", stats.engine.head_pages),
        "states": ("Recurrent states that the cache has room for", stats.engine.num_states),
        "states_free": ("Recurrent states that nobody or only snapshots hold", stats.engine.free_states),
        "tokens_per_second": ("Tokens drawn a second since this page was last read", rate),
    }
    for name, (text, value) in values.items():
        yield GaugeMetricFamily(f"asyncthink_{name}", text, value=value)


def _counters(stats: ServiceStats) -> Iterable[Metric]:
    engine = stats.engine
    values = {
        "steps": ("Forward passes", engine.steps),
        "drawn_tokens": ("Tokens drawn", engine.drawn_tokens),
        "prompt_tokens": ("Tokens of prompts", engine.prompt_tokens),
        "prefix_hit_tokens": ("Tokens of prompts that were computed already", engine.prefix_tokens),
        "prefix_copied_tokens": (
            "Of these and of resumed contexts, tokens whose K/V were copied",
            engine.copied_tokens,
        ),
        "kv_copied_bytes": ("K and V that forks copied", engine.kv_bytes_copied),
        "state_copied_bytes": ("Recurrent states that forks copied", engine.state_bytes_copied),
        "evictions": ("Heads given up for room", engine.evictions),
        "preemptions": ("Episodes paused for room", engine.preemptions),
        "forks": ("Workers forked", stats.forks),
        "joins": ("Returns joined", stats.joins),
        "format_errors": ("Format errors of agents", stats.format_errors),
    }
    for name, (text, value) in values.items():
        yield CounterMetricFamily(f"asyncthink_{name}", text, value=value)
    episodes = CounterMetricFamily("asyncthink_episodes", "Episodes that have ended", labels=["finish"])
    for finish, count in stats.finished.items():
        episodes.add_metric([finish], count)
    yield episodes
