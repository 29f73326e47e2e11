"""Held-out puzzles, and their two halves: *validation* (to choose a checkpoint, a temperature, a budget) and *test*."""

from __future__ import annotations

import hashlib
from typing import Any, Literal

from asyncthink.tasks import Task

Part = Literal["all", "validation", "test"]
PARTS = ("all", "validation", "test")


def for_validation(task: Task, puzzle: Any) -> bool:
    """Whether a held-out puzzle is of the validation half: the second byte of a SHA-256 is even.

    The hash is of ``task.split_name(puzzle)`` if the task has that method, so that related puzzles stay together, else
    of the question.
    """
    name = getattr(task, "split_name", task.prompt)(puzzle)
    return hashlib.sha256(name.encode()).digest()[1] % 2 == 0


def held_out(task: Task, count: int, first: int = 0, part: Part = "all") -> list[Any]:
    """``count`` different held-out puzzles of a part: those of seeds ``first``, ``first + 1``, ... without repeats.

    Raises ValueError for an unknown part, and if ``50 * count + 1000`` seeds do not give that many.

    >>> from asyncthink.tasks import task
    >>> puzzles = held_out(task("countdown"), 5, part="validation")
    >>> [for_validation(task("countdown"), puzzle) for puzzle in puzzles]
    [True, True, True, True, True]
    """
    if count < 1:
        raise ValueError(f"puzzles: expected at least one, got {count}")
    if part not in PARTS:
        raise ValueError(f"part: expected one of {', '.join(PARTS)}, got {part!r}")
    by_question: dict[str, Any] = {}
    for seed in range(first, first + 50 * count + 1000):
        puzzle = task.sample(seed, held_out=True)
        if part == "all" or for_validation(task, puzzle) == (part == "validation"):
            by_question.setdefault(task.prompt(puzzle), puzzle)
        if len(by_question) == count:
            return list(by_question.values())
    of = "" if part == "all" else f" for {part}"
    raise ValueError(f"puzzles: expected at most {len(by_question)}, all that {task.name} holds out{of}, got {count}")
