"""How well a sampler solves a task: solutions found, critical path, format errors, on held-out puzzles."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from asyncthink.records import Episode, Event, TokenEvent
from asyncthink.sampler import ForkJoinSampler, SamplingParams
from asyncthink.tasks import Countdown


def settings(modes: str, contexts: str, joins: str) -> list[dict[str, str]]:
    """Sampler options for every combination of comma-separated values; context and join only where there are workers.

    >>> settings("sequential,asyncthink", "shared", "exact,link")  # doctest: +NORMALIZE_WHITESPACE
    [{'mode': 'sequential'},
     {'mode': 'asyncthink', 'context': 'shared', 'join': 'exact'},
     {'mode': 'asyncthink', 'context': 'shared', 'join': 'link'}]
    """
    found: list[dict[str, str]] = []
    for mode in modes.split(","):
        organized = itertools.product(contexts.split(","), joins.split(","))
        pairs = [{"context": c, "join": j} for c, j in organized] if mode == "asyncthink" else [{}]
        found += [{"mode": mode, **pair} for pair in pairs]
    return found


def evaluate(
    sampler: ForkJoinSampler,
    task: Countdown,
    seeds: Sequence[int],
    params: SamplingParams,
    *,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Answer the held-out puzzles of ``seeds``, all in one batch, and grade them.

    Puzzle k draws with seed ``params.seed + k``. Seconds are not among the figures: in a batch an episode's seconds
    are everybody's.

    Args:
        progress: called with the number of finished episodes whenever one finishes.

    Returns:
        counts and means over the puzzles, ready for JSON: ``at_least`` maps n to the share with at least n different
        correct solutions, tokens are means an episode.

    Raises:
        ValueError: no seeds.
    """
    if not seeds:
        raise ValueError("seeds: expected at least one puzzle, got none")
    puzzles = [task.sample(seed, held_out=True) for seed in seeds]
    finished: set[int] = set()

    def watch(number: int, event: Event | TokenEvent) -> None:
        if isinstance(event, Event) and event.kind in ("answer", "stop"):
            finished.add(number)
            progress(len(finished))

    episodes = sampler.generate(
        [task.prompt(puzzle) for puzzle in puzzles],
        [params.with_seed(params.seed + number) for number in range(len(puzzles))],
        on_event=watch,
    )
    found = [len(task.correct(p, e.answer or "")) for p, e in zip(puzzles, episodes, strict=True)]
    return {"puzzles": len(puzzles), "task": task.name, **_options(sampler), **_figures(episodes, found, task.asked)}


def _options(sampler: ForkJoinSampler) -> dict[str, Any]:
    options = sampler.options
    organized = {"context": options.context, "join": options.join} if options.mode == "asyncthink" else {}
    return {"mode": options.mode, "pool": options.pool, **organized}


def _figures(episodes: Sequence[Episode], found: Sequence[int], asked: int) -> dict[str, Any]:
    return {
        "at_least": {n: fmean(count >= n for count in found) for n in range(1, asked + 1)},
        "critical_path_tokens": fmean(e.critical_path_tokens for e in episodes),
        "total_tokens": fmean(e.total_tokens for e in episodes),
        "concurrency": fmean(e.concurrency for e in episodes),
        "forks": fmean(e.forks for e in episodes),
        "joins": fmean(e.joins for e in episodes),
        "episodes_with_format_errors": fmean(bool(e.format_errors) for e in episodes),
        "format_errors": dict(Counter(error for e in episodes for error in e.format_errors).most_common(5)),
    }
