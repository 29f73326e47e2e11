"""How well samplers solve a task on held-out puzzles: solutions found, concurrency, critical path, format errors.

Every setting answers the same puzzles with the same seeds and the same token budget for each trace. Figures are means
over puzzles with a bootstrap interval (:mod:`asyncthink.eval.bootstrap`); of several draws of a puzzle the mean counts.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from asyncthink.engine.sampler import ForkJoinSampler, SamplingParams
from asyncthink.episode.records import Episode, Event, TokenEvent
from asyncthink.eval.bootstrap import Bootstrap, Estimate
from asyncthink.protocol.tags import FORMAT_ERRORS
from asyncthink.tasks import Task
from asyncthink.tasks.grading import how_to_aggregate
from asyncthink.tasks.rewards import Reward, RewardRule, eta

#: Columns of a row that are kept for every puzzle, so that any two rows can be compared puzzle by puzzle later.
KEPT = ("solved", "accuracy", "critical_path_tokens", "eta_agents", "format_errors")
Columns = dict[str, list[float]]


def settings(modes: str, contexts: str, joins: str) -> list[dict[str, str]]:
    """Sampler options for every combination of comma-separated values; context and join only where there are workers.

    >>> settings("sequential,asyncthink", "shared", "exact,link")  # doctest: +NORMALIZE_WHITESPACE
    [{'mode': 'sequential'},
     {'mode': 'asyncthink', 'context': 'shared', 'join': 'exact'},
     {'mode': 'asyncthink', 'context': 'shared', 'join': 'link'}]

    Raises ValueError for a value that stands there twice.
    """
    for name, values in (("mode", modes), ("context", contexts), ("join", joins)):
        if len(set(values.split(","))) < len(values.split(",")):
            raise ValueError(f"{name}: expected each value once, got {values!r}")
    found: list[dict[str, str]] = []
    for mode in modes.split(","):
        organized = itertools.product(contexts.split(","), joins.split(","))
        pairs = [{"context": c, "join": j} for c, j in organized] if mode == "asyncthink" else [{}]
        found += [{"mode": mode, **pair} for pair in pairs]
    return found


def held_out(task: Task, count: int, first: int = 0) -> list[Any]:
    """``count`` different held-out puzzles: those of seeds ``first``, ``first + 1``, ... less the repeats.

    Raises ValueError where 50 seeds a puzzle (and 1,000 more) do not bring that many.
    """
    if count < 1:
        raise ValueError(f"puzzles: expected at least one, got {count}")
    found: dict[str, Any] = {}
    for seed in range(first, first + 50 * count + 1000):
        puzzle = task.sample(seed, held_out=True)
        found.setdefault(task.prompt(puzzle), puzzle)
        if len(found) == count:
            return list(found.values())
    raise ValueError(f"puzzles: expected at most {len(found)}, all that {task.name} holds out, got {count}")


def fingerprint(task: Task, puzzles: Sequence[Any]) -> str:
    """SHA-256 of the questions, in order: two evaluations with the same one asked the same."""
    return hashlib.sha256("\n".join(task.prompt(puzzle) for puzzle in puzzles).encode()).hexdigest()


def evaluate(
    sampler: ForkJoinSampler,
    task: Task,
    puzzles: Sequence[Any],
    params: SamplingParams,
    *,
    draws: int = 1,
    aggregate: str | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Answer every puzzle ``draws`` times, all in one batch, and grade: one row of a table, ready for JSON.

    Draw d of puzzle k has seed ``params.seed + k * draws + d``. Seconds are not among the figures: in a batch an
    episode's seconds are everybody's (:func:`measure_seconds`).

    Args:
        aggregate: how parallel answers become one (:func:`asyncthink.tasks.grading.final_answer`).
        progress: called with the number of finished episodes whenever one finishes.

    Returns:
        the options; estimates as ``{"value", "low", "high"}``: ``at_least`` maps "n" to the share with at least n
        different correct results, ``accuracy`` is the mean correct share, ``eta_agents`` and ``eta_workers`` are the
        two readings of :func:`asyncthink.tasks.rewards.eta`, tokens are means an episode, ``format_errors`` is the
        share of episodes whose protocol broke as the reward counts it, ``over_budget`` that in which some agent ran
        out of tokens; ``errors`` counts format errors by reason; ``per_puzzle`` holds the columns :data:`KEPT`.

    Raises:
        ValueError: no puzzles, no draws, several draws at temperature 0, an ``aggregate`` the task does not have.
    """
    if draws < 1 or (draws > 1 and params.temperature == 0):
        raise ValueError(f"draws: expected 1 at temperature 0, at least 1 above, got {draws}")
    how, bootstrap = how_to_aggregate(task, aggregate), Bootstrap(len(puzzles))
    rule = RewardRule(aggregate=how)
    finished: set[int] = set()

    def watch(number: int, event: Event | TokenEvent) -> None:
        if isinstance(event, Event) and event.kind in ("answer", "stop"):
            finished.add(number)
            progress(len(finished))

    asked = [puzzle for puzzle in puzzles for _ in range(draws)]
    episodes = sampler.generate(
        [task.prompt(puzzle) for puzzle in asked],
        [params.with_seed(params.seed + number) for number in range(len(asked))],
        on_event=watch,
    )
    each = [_figures(rule(task, p, e), e, task.asked) for p, e in zip(asked, episodes, strict=True)]
    columns = {
        name: [fmean(figures[name] for figures in each[k : k + draws]) for k in range(0, len(each), draws)]
        for name in each[0]
    }
    return {
        **_options(sampler, how),
        "at_least": {str(n): asdict(bootstrap.mean(columns.pop(f"at_least_{n}"))) for n in range(1, task.asked + 1)},
        **{name: asdict(bootstrap.mean(column)) for name, column in columns.items() if name != "solved"},
        "errors": dict(Counter(map(_reason, (error for e in episodes for error in e.format_errors))).most_common()),
        "per_puzzle": {name: [round(value, 4) for value in columns[name]] for name in KEPT},
    }


def _options(sampler: ForkJoinSampler, aggregate: str) -> dict[str, Any]:
    options = sampler.options
    own = {
        "asyncthink": {"context": options.context, "join": options.join},
        "parallel": {"aggregate": aggregate},
        "sequential": {},
    }[options.mode]
    return {"name": " ".join([options.mode, *own.values()]), "mode": options.mode, **own}


def _figures(reward: Reward, episode: Episode, asked: int) -> dict[str, float]:
    """The columns of one episode."""
    found = round(reward.accuracy * asked, 9)
    return {
        **{f"at_least_{n}": float(found >= n) for n in range(1, asked + 1)},
        "solved": float(found >= asked),
        "accuracy": reward.accuracy,
        "critical_path_tokens": float(episode.critical_path_tokens),
        "total_tokens": float(episode.total_tokens),
        "eta_agents": eta(episode, "agents"),
        "eta_workers": eta(episode, "workers"),
        "forks": float(episode.forks),
        "joins": float(episode.joins),
        "format_errors": float(reward.broken),
        "over_budget": float(any(trace.finish == "budget" for trace in episode.traces)),
    }


def _reason(error: str) -> str:
    """What an entry of ``Episode.format_errors`` ("worker 2: nested tag: <FORK-1>") is about."""
    return next((part for part in error.split(": ") if part in FORMAT_ERRORS), error)


def measure_seconds(
    samplers: Mapping[str, ForkJoinSampler],
    task: Task,
    puzzles: Sequence[Any],
    params: SamplingParams,
    *,
    draws: int = 1,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, list[float]]:
    """Seconds of the critical path for each setting and puzzle, one episode at a time.

    Puzzle by puzzle all settings take their turn, each puzzle beginning with another one, after an untimed first
    round; so whatever else the machine does hits all alike. Seeds are those of :func:`evaluate`'s first draws.
    ``progress`` is called with the number of finished puzzles.
    """
    names = list(samplers)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for sampler in samplers.values():
        sampler.generate([task.prompt(puzzles[0])], params)
    for number, puzzle in enumerate(puzzles):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            drawn = params.with_seed(params.seed + number * draws)
            (episode,) = samplers[name].generate([task.prompt(puzzle)], drawn)
            seconds[name].append(episode.critical_path_seconds)
        progress(number + 1)
    return seconds


def compare(row: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """``row`` against ``other`` on the same puzzles, paired: estimates of differences and ratios.

    ``solved`` and ``accuracy``: difference of the means; ``critical_path_tokens``: ratio of the means; ``seconds``:
    ratio of the medians, where both were timed. Raises ValueError for rows of another number of puzzles.
    """
    one, two = row["per_puzzle"], other["per_puzzle"]
    bootstrap = Bootstrap(len(one["solved"]))
    found: dict[str, Estimate] = {name: bootstrap.difference(one[name], two[name]) for name in ("solved", "accuracy")}
    path = "critical_path_tokens"
    found[path] = bootstrap.ratio(one[path], two[path])
    if "seconds" in row and "seconds" in other:
        one, two = row["seconds"]["each"], other["seconds"]["each"]
        found["seconds"] = Bootstrap(len(one)).median_ratio(one, two)
    return {"of": row["name"], "against": other["name"], **{name: asdict(value) for name, value in found.items()}}


def with_seconds(row: dict[str, Any], seconds: Sequence[float]) -> dict[str, Any]:
    """The row with the median of its measured seconds, and each of them."""
    estimate = asdict(Bootstrap(len(seconds)).median(seconds))
    return row | {"seconds": estimate | {"each": [round(value, 6) for value in seconds]}}
