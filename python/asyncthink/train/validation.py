"""Validation during GRPO: held-out puzzles of the validation half, and the best checkpoint by them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from asyncthink.engine.sampler import ForkJoinSampler, SamplingParams
from asyncthink.tasks import Task
from asyncthink.tasks.held_out import held_out
from asyncthink.tasks.rewards import RewardFunction, evaluate
from asyncthink.train.distributed import World
from asyncthink.train.metrics import finite_mean

#: What a validation reports, as means over its episodes.
FIGURES = ("solved", "accuracy", "critical_path_tokens", "total_tokens", "format_errors", "reward")
FIRST = 2_000_000  # seed of the first puzzle


def puzzles_for(tasks: Sequence[Task], count: int) -> list[tuple[Task, Any]]:
    """``count`` validation puzzles, dealt evenly to the tasks; fewer where a task has not as many.

    Raises ValueError for a task without any.
    """
    made: list[tuple[Task, Any]] = []
    for number, task in enumerate(tasks):
        share = len(range(number, count, len(tasks)))
        made += [(task, puzzle) for puzzle in held_out(task, share, FIRST, "validation")] if share else []
    return made


def validate(
    sampler: ForkJoinSampler,
    puzzles: Sequence[tuple[Task, Any]],
    params: SamplingParams,
    rule: RewardFunction,
    world: World,
) -> dict[str, float]:
    """The :data:`FIGURES` over all puzzles; each process answers its share. Puzzle k draws with seed k."""
    mine = world.mine(list(enumerate(puzzles)))
    prompts = [task.prompt(puzzle) for _, (task, puzzle) in mine]
    sets = [params.with_seed(number) for number, _ in mine]
    episodes = sampler.generate(prompts, sets) if prompts else []
    reports = []
    for (_, (task, puzzle)), episode in zip(mine, episodes, strict=True):
        reward = evaluate(rule, task, puzzle, episode)
        path, drawn = episode.critical_path_tokens, episode.total_tokens
        reports.append((reward.accuracy >= 1, reward.accuracy, path, drawn, reward.broken, reward.total))
    columns = zip(FIGURES, zip(*world.gather(reports), strict=True), strict=True)
    return {name: finite_mean([float(value) for value in column]) for name, column in columns}


def better(figures: dict[str, float], other: dict[str, float] | None) -> bool:
    """Whether ``figures`` beat ``other``: more puzzles solved, or as many on a shorter critical path.

    >>> better({"solved": 0.5, "critical_path_tokens": 90.0}, {"solved": 0.5, "critical_path_tokens": 95.0})
    True
    """
    if other is None:
        return True
    return (figures["solved"], -figures["critical_path_tokens"]) > (other["solved"], -other["critical_path_tokens"])
