"""Evaluation on held-out puzzles: solutions found, concurrency, critical path, format errors.

Every setting answers the same puzzles with the same seeds and the same token limit per agent. Metrics are means over
puzzles with a bootstrap interval (:mod:`asyncthink.eval.bootstrap`); several draws of a puzzle are averaged first.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from asyncthink.episode.params import SamplingParams
from asyncthink.episode.records import Episode, Event, TokenEvent
from asyncthink.episode.source import EpisodeSource
from asyncthink.eval.bootstrap import Bootstrap, Estimate
from asyncthink.protocol.tags import FORMAT_ERRORS
from asyncthink.tasks import Task
from asyncthink.tasks.grading import how_to_aggregate
from asyncthink.tasks.rewards import Reward, RewardRule, eta

#: Metrics that a row keeps for each puzzle, so that any two rows can be compared puzzle by puzzle.
KEPT = ("solved", "accuracy", "critical_path_tokens", "eta_agents", "format_errors")
Columns = dict[str, list[float]]


def settings(modes: str, contexts: str, joins: str) -> list[dict[str, str]]:
    """Sampler options for every combination of comma-separated values; context and join only for "asyncthink".

    >>> settings("sequential,asyncthink", "shared", "exact,link")  # doctest: +NORMALIZE_WHITESPACE
    [{'mode': 'sequential'},
     {'mode': 'asyncthink', 'context': 'shared', 'join': 'exact'},
     {'mode': 'asyncthink', 'context': 'shared', 'join': 'link'}]

    Raises ValueError for a repeated value.
    """
    for name, values in (("mode", modes), ("context", contexts), ("join", joins)):
        if len(set(values.split(","))) < len(values.split(",")):
            raise ValueError(f"{name}: expected each value once, got {values!r}")
    combinations: list[dict[str, str]] = []
    for mode in modes.split(","):
        organized = itertools.product(contexts.split(","), joins.split(","))
        pairs = [{"context": c, "join": j} for c, j in organized] if mode == "asyncthink" else [{}]
        combinations += [{"mode": mode, **pair} for pair in pairs]
    return combinations


def fingerprint(task: Task, puzzles: Sequence[Any]) -> str:
    """SHA-256 of the questions, in order. Evaluations with equal fingerprints asked the same questions."""
    return hashlib.sha256("\n".join(task.prompt(puzzle) for puzzle in puzzles).encode()).hexdigest()


def evaluate(
    sampler: EpisodeSource,
    task: Task,
    puzzles: Sequence[Any],
    params: SamplingParams,
    *,
    draws: int = 1,
    aggregate: str | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Answer every puzzle ``draws`` times, all in one batch, and grade: one row of a table, ready for JSON.

    Draw d of puzzle k has seed ``params.seed + k * draws + d``. Seconds are not measured here: all episodes of a batch
    share them (:func:`measure_seconds`).

    Args:
        aggregate: how parallel answers become one (:func:`asyncthink.tasks.grading.final_answer`).
        progress: called with the number of finished episodes whenever one finishes.

    Returns:
        A dict of the options and these entries. Estimates are ``{"value", "low", "high"}``.

        * ``at_least``: "n" -> estimate of the share of episodes with at least n different correct results.
        * ``accuracy``: estimate of the mean correct share.
        * ``eta_agents``, ``eta_workers``: both readings of :func:`asyncthink.tasks.rewards.eta`, estimates.
        * ``critical_path_tokens``, ``total_tokens``, ``forks``, ``joins``: estimates of the mean per episode.
        * ``format_errors``: estimate of the share of episodes that broke the protocol, as the reward counts it.
        * ``over_budget``: estimate of the share of episodes in which some agent reached the token limit.
        * ``errors``: number of format errors by reason.
        * ``per_puzzle``: the metrics :data:`KEPT` of each puzzle.

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

    repeated = [puzzle for puzzle in puzzles for _ in range(draws)]
    episodes = sampler.generate(
        [task.prompt(puzzle) for puzzle in repeated],
        [params.with_seed(params.seed + number) for number in range(len(repeated))],
        on_event=watch,
    )
    metrics = [
        _metrics(rule(task, puzzle, episode), episode, task.asked)
        for puzzle, episode in zip(repeated, episodes, strict=True)
    ]
    columns = {
        name: [fmean(m[name] for m in metrics[start : start + draws]) for start in range(0, len(metrics), draws)]
        for name in metrics[0]
    }
    return {
        **_options(sampler, how),
        "at_least": {str(n): asdict(bootstrap.mean(columns.pop(f"at_least_{n}"))) for n in range(1, task.asked + 1)},
        **{name: asdict(bootstrap.mean(column)) for name, column in columns.items() if name != "solved"},
        "errors": dict(Counter(map(_reason, (error for e in episodes for error in e.format_errors))).most_common()),
        "per_puzzle": {name: [round(value, 4) for value in columns[name]] for name in KEPT},
    }


def _options(sampler: EpisodeSource, aggregate: str) -> dict[str, Any]:
    options = sampler.options
    own = {
        "asyncthink": {"context": options.context, "join": options.join},
        "parallel": {"aggregate": aggregate},
        "sequential": {},
    }[options.mode]
    return {"name": " ".join([options.mode, *own.values()]), "mode": options.mode, **own}


def _metrics(reward: Reward, episode: Episode, asked: int) -> dict[str, float]:
    """The metrics of one episode."""
    correct = round(reward.accuracy * asked, 9)
    return {
        **{f"at_least_{n}": float(correct >= n) for n in range(1, asked + 1)},
        "solved": float(correct >= asked),
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
    """The reason in an entry of ``Episode.format_errors``, such as "worker 2: nested tag: <FORK-1>"."""
    return next((part for part in error.split(": ") if part in FORMAT_ERRORS), error)


def measure_seconds(
    samplers: Mapping[str, EpisodeSource],
    task: Task,
    puzzles: Sequence[Any],
    params: SamplingParams | Mapping[str, SamplingParams],
    *,
    draws: int = 1,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, list[float]]:
    """Seconds of the critical path for each setting and puzzle, one episode at a time; ``params`` for all, or for each.

    After an untimed warm-up, all settings solve one puzzle before any solves the next, and the first setting rotates
    from puzzle to puzzle. Other load on the machine then affects all settings alike. Seeds are those of
    :func:`evaluate`'s first draws. ``progress`` is called with the number of finished puzzles.
    """
    names = list(samplers)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    sets = params if isinstance(params, Mapping) else dict.fromkeys(names, params)
    for name, sampler in samplers.items():
        sampler.generate([task.prompt(puzzles[0])], sets[name])
    for number, puzzle in enumerate(puzzles):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            seeded = sets[name].with_seed(sets[name].seed + number * draws)
            (episode,) = samplers[name].generate([task.prompt(puzzle)], seeded)
            seconds[name].append(episode.critical_path_seconds)
        progress(number + 1)
    return seconds


def compare(row: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """``row`` against ``other`` on the same puzzles, paired: estimates of differences and ratios.

    ``solved`` and ``accuracy``: difference of the means; ``critical_path_tokens``: ratio of the means; ``seconds``:
    ratio of the medians, if both were timed. Raises ValueError for rows with different numbers of puzzles.
    """
    mine, theirs = row["per_puzzle"], other["per_puzzle"]
    bootstrap = Bootstrap(len(mine["solved"]))
    estimates: dict[str, Estimate] = {
        name: bootstrap.difference(mine[name], theirs[name]) for name in ("solved", "accuracy")
    }
    path = "critical_path_tokens"
    estimates[path] = bootstrap.ratio(mine[path], theirs[path])
    if "seconds" in row and "seconds" in other:
        mine, theirs = row["seconds"]["each"], other["seconds"]["each"]
        estimates["seconds"] = Bootstrap(len(mine)).median_ratio(mine, theirs)
    return {"of": row["name"], "against": other["name"], **{name: asdict(value) for name, value in estimates.items()}}


def with_seconds(row: dict[str, Any], seconds: Sequence[float]) -> dict[str, Any]:
    """The row with the median of its measured seconds, and the seconds of each puzzle."""
    estimate = asdict(Bootstrap(len(seconds)).median(seconds))
    return row | {"seconds": estimate | {"each": [round(value, 6) for value in seconds]}}
