"""How many held-out puzzles a checkpoint really solves, decoded by the sampler."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from asyncthink.records import Episode
from asyncthink.sampler import ForkJoinSampler, SamplingParams
from asyncthink.serve import Served
from asyncthink.tasks import task


@dataclass(frozen=True, slots=True)
class Setting:
    """One way to answer; ``context`` and ``join`` mean nothing when one agent works alone."""

    mode: str = "asyncthink"
    context: str = "shared"
    join: str = "exact"

    def __str__(self) -> str:
        return self.mode if self.mode == "sequential" else f"{self.mode}, {self.context}, {self.join}"


SETTINGS = (
    Setting("sequential"),
    Setting(),
    Setting(context="isolated"),
    Setting(join="append"),
    Setting(context="isolated", join="append"),
)


@dataclass(frozen=True, slots=True)
class SolveRate:
    """Means over ``puzzles`` episodes. ``solved`` is the share with all solutions asked for, ``found`` the mean share
    of them; ``critical_path`` and ``tokens`` count drawn tokens; ``format_errors`` is the share with any."""

    setting: Setting
    puzzles: int
    solved: float
    found: float
    critical_path: float
    tokens: float
    forks: float
    concurrency: float
    format_errors: float
    error_kinds: dict[str, int]


def solve_rates(
    model: str | Path, task_name: str, puzzles: int, params: SamplingParams, settings: Sequence[Setting], pool: int = 4
) -> list[SolveRate]:
    """Answer the same held-out puzzles (seeds 0, 1, ...) in every setting. Raises ValueError as the sampler does."""
    if puzzles < 1:
        raise ValueError(f"puzzles: expected at least 1, got {puzzles}")
    served = Served.load(model)
    return [
        _solve_rate(
            served.sampler(mode=setting.mode, context=setting.context, join=setting.join, pool=pool),
            setting,
            task_name,
            puzzles,
            params,
        )
        for setting in settings
    ]


def _solve_rate(
    sampler: ForkJoinSampler, setting: Setting, task_name: str, puzzles: int, params: SamplingParams
) -> SolveRate:
    made = task(task_name)
    chosen = [made.sample(seed, held_out=True) for seed in range(puzzles)]
    questions = [made.prompt(puzzle) for puzzle in chosen]
    episodes = sampler.generate(questions, [params.with_seed(params.seed + k) for k in range(puzzles)])
    shares = [made.verify(puzzle, episode.answer) for puzzle, episode in zip(chosen, episodes, strict=True)]

    def mean(values: list[float]) -> float:
        return sum(values) / puzzles

    return SolveRate(
        setting,
        puzzles,
        solved=mean([share == 1.0 for share in shares]),
        found=mean(shares),
        critical_path=mean([episode.critical_path_tokens for episode in episodes]),
        tokens=mean([episode.total_tokens for episode in episodes]),
        forks=mean([episode.forks for episode in episodes]),
        concurrency=mean([episode.concurrency for episode in episodes]),
        format_errors=mean([bool(episode.format_errors) for episode in episodes]),
        error_kinds=_kinds(episodes),
    )


def _kinds(episodes: list[Episode]) -> dict[str, int]:
    return dict(Counter(error for episode in episodes for error in episode.format_errors).most_common(5))
