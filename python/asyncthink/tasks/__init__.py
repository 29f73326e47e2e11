"""Tasks: generate a puzzle, verify an answer, demonstrate a solution. No torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from asyncthink.tasks.countdown import Countdown, Puzzle
from asyncthink.tasks.listed import ListedCountdown
from asyncthink.tasks.math import Math
from asyncthink.tasks.script import Demonstration, Piece, Script
from asyncthink.tasks.sudoku import Sudoku

_KNOWN: tuple[Task, ...] = (
    Countdown(),
    Countdown("countdown-8", count=8, most=6),
    Countdown("countdown-8x4", count=8, most=4),
    Sudoku(),
    Sudoku("sudoku-9", size=9, least=28, most=34),
)
TASKS: dict[str, Task] = {known.name: known for known in _KNOWN}
_FILES: dict[str, Callable[[str, bool], Task]] = {"countdown": ListedCountdown.load, "math": Math.load}

__all__ = [
    "TASKS",
    "Countdown",
    "Demonstration",
    "ListedCountdown",
    "Math",
    "Piece",
    "Puzzle",
    "Script",
    "Sudoku",
    "Task",
    "task",
    "tasks",
]


class Task(Protocol):
    """What a task is: a newcomer adds one as a small class in a file of its own, and its name to :data:`TASKS`.

    ``asked`` is how many different correct results an answer is asked for. A puzzle is whatever the task likes.
    """

    @property
    def name(self) -> str: ...

    @property
    def asked(self) -> int: ...

    def sample(self, seed: int, held_out: bool = False) -> Any:
        """The puzzle of this seed, from those that training never sees or from the others."""

    def prompt(self, puzzle: Any) -> str:
        """The question as text."""

    def verify(self, puzzle: Any, answer: str | None) -> float:
        """The correct share of an answer in [0, 1]; an absent answer is 0."""

    def demonstrate(
        self, puzzle: Any, seed: int, mode: str = "asyncthink", context: str = "shared", pool: int = 4
    ) -> Demonstration:
        """A written-out solution, a pure function of its arguments. ValueError where the task has none."""


def task(name: str) -> Task:
    """The task of this name, or one read from a local file: ``math:PATH``, ``countdown:PATH``.

    Of a file a tenth of the records is held out; of ``math-test:PATH`` and ``countdown-test:PATH`` all are. Raises
    ValueError for an unknown name, and what :meth:`.math.Math.load` and :meth:`.listed.ListedCountdown.load` raise.
    """
    kind, colon, path = name.partition(":")
    if colon and kind.removesuffix("-test") in _FILES:
        return _FILES[kind.removesuffix("-test")](path, kind.endswith("-test"))
    if name not in TASKS:
        files = [f"{kind}{test}:PATH" for kind in _FILES for test in ("", "-test")]
        raise ValueError(f"task: expected one of {', '.join([*TASKS, *files])}, got {name!r}")
    return TASKS[name]


def tasks(names: str) -> list[Task]:
    """The tasks of comma-separated names (so a file's path holds no comma).

    >>> [each.name for each in tasks("countdown,countdown-8")]
    ['countdown', 'countdown-8']
    """
    return [task(name) for name in names.split(",")]
