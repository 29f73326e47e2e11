"""The demo: one held-out puzzle solved by an organizer with workers, verified, and timed against one agent alone."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, cast

from rich.console import Console
from rich.text import Text

from asyncthink.engine.loaded import LoadedModel
from asyncthink.engine.sampler import ForkJoinSampler, SamplingParams
from asyncthink.episode.records import Episode
from asyncthink.tasks import TASKS, Countdown, Puzzle
from asyncthink.view.terminal import watcher

MAX_TOKENS = 1024
_PACE = 60.0  # steps per second on the screen
_ROUNDS, _SECONDS = 3, 6.0  # timed rounds, and the seconds after which no further round begins


@dataclass(frozen=True, slots=True)
class Outcome:
    """The same puzzle organized and by one agent; each episode is the median of ``rounds``, timed alternately."""

    puzzle: Puzzle
    episode: Episode
    sequential: Episode
    right: int
    right_alone: int
    asked: int
    rounds: int
    page_bytes: int

    @property
    def solved(self) -> bool:
        return self.right == self.asked

    @property
    def pages_shared(self) -> int:
        """Pages of K/V that workers read in place; without sharing they would be computed or copied again."""
        return -(-self.episode.kv_bytes_shared // self.page_bytes) if self.page_bytes else 0


def play(loaded: LoadedModel, console: Console, *, task: str, seed: int, pool: int, context: str, join: str) -> Outcome:
    """Play the demo on a held-out puzzle of the countdown ``task``; unless it is quiet, ``console`` shows it live.

    The episode on the screen is not the one that is timed: printing costs time, so the same episodes are decoded again
    without it. A quiet demo also decodes the first episode: it is the warm-up.

    Raises ValueError for options outside their range.
    """
    known = cast(Countdown, TASKS[task])
    puzzle = known.sample(seed, held_out=True)
    question = known.prompt(puzzle)
    params = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS, seed=seed)
    organized = loaded.sampler(mode="asyncthink", pool=pool, context=context, join=join)
    alone = loaded.sampler(mode="sequential", pool=pool)
    if not console.quiet:
        goal = f"  {known.asked} different expressions, each number at most once in each; a puzzle held out of training"
        console.print(Text.assemble((question, "bold"), (goal, "dim")), soft_wrap=True)
    with watcher(console, _PACE) as screen, organized.stream(question, params) as stream:
        for event in stream:
            screen.show(event)
    episode, sequential, rounds = _timed(organized, alone, question, params)
    right, right_alone = (len(known.correct(puzzle, timed.answer or "")) for timed in (episode, sequential))
    for timed, count in ((episode, right), (sequential, right_alone)):
        timed.meta.update(model=loaded.name, solved=count == known.asked, right=count, asked=known.asked)
    page_bytes = loaded.decoder.storage.bytes_per_token * loaded.decoder.cache.page_size
    return Outcome(puzzle, episode, sequential, right, right_alone, known.asked, rounds, page_bytes)


def _timed(
    organized: ForkJoinSampler, alone: ForkJoinSampler, question: str, params: SamplingParams
) -> tuple[Episode, Episode, int]:
    """Both kinds alternately, after one warm-up step each; of each kind the episode with the median wall clock."""
    for sampler in (organized, alone):
        sampler.generate([question], SamplingParams(max_tokens=1))
    pairs: list[tuple[Episode, Episode]] = []
    start = time.perf_counter()
    while not pairs or (len(pairs) < _ROUNDS and time.perf_counter() - start < _SECONDS):
        pairs.append((organized.generate([question], params)[0], alone.generate([question], params)[0]))
    episode, sequential = (sorted(episodes, key=_wall)[len(episodes) // 2] for episodes in zip(*pairs, strict=True))
    return episode, sequential, len(pairs)


def _wall(episode: Episode) -> float:
    return episode.wall_seconds


def summary(outcome: Outcome) -> dict[str, Any]:
    """The object that ``--json`` prints: plain values, times in seconds."""
    episode, alone = outcome.episode, outcome.sequential
    return {
        "solved": outcome.solved,
        "question": episode.question,
        "answer": episode.answer,
        "right": outcome.right,
        "asked": outcome.asked,
        "forks": episode.forks,
        "joins": episode.joins,
        "format_errors": episode.format_errors,
        "critical_path_tokens": episode.critical_path_tokens,
        "total_tokens": episode.total_tokens,
        "concurrency": round(episode.concurrency, 4),
        "wall_seconds": episode.wall_seconds,
        "critical_path_seconds": episode.critical_path_seconds,
        "kv_bytes_shared": episode.kv_bytes_shared,
        "kv_bytes_copied": episode.kv_bytes_copied,
        "state_bytes_copied": episode.state_bytes_copied,
        "pages_shared": outcome.pages_shared,
        "join_mode": episode.join_mode,
        "context": episode.context,
        "pool": episode.pool,
        "seed": episode.seed,
        "model": episode.meta["model"],
        "rounds": outcome.rounds,
        "sequential": {
            "solved": outcome.right_alone == outcome.asked,
            "right": outcome.right_alone,
            "format_errors": alone.format_errors,
            "critical_path_tokens": alone.critical_path_tokens,
            "wall_seconds": alone.wall_seconds,
        },
    }
