"""Tasks: generate a puzzle, verify an answer, write a demonstration. No torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from asyncthink.tasks.countdown import Countdown, Puzzle
from asyncthink.tasks.dataset import load_dataset
from asyncthink.tasks.listed import ListedCountdown
from asyncthink.tasks.math import Math
from asyncthink.tasks.reasoning_gym import ReasoningGym
from asyncthink.tasks.script import Demonstration, Piece, Script
from asyncthink.tasks.sudoku import Sudoku

_BUILTIN: tuple[Task, ...] = (
    Countdown(),
    Countdown("countdown-8", count=8, most=6),
    Countdown("countdown-8x4", count=8, most=4),
    Sudoku(),
    Sudoku("sudoku-9", size=9, least=28, most=34),
)
TASKS: dict[str, Task] = {builtin.name: builtin for builtin in _BUILTIN}
_FILES: dict[str, Callable[[str, bool], Task]] = {
    **{"countdown": ListedCountdown.load, "math": Math.load},
    **{"dataset": load_dataset, "reasoning-gym": ReasoningGym.load},
}

__all__ = [
    "TASKS",
    "Countdown",
    "Demonstration",
    "ListedCountdown",
    "Math",
    "Piece",
    "Puzzle",
    "ReasoningGym",
    "Script",
    "Sudoku",
    "Task",
    "task",
    "tasks",
]


class Task(Protocol):
    """The interface of a task. To add one, write a class in a file of its own and add it to :data:`TASKS`.

    ``asked`` is the number of different correct results that a complete answer holds. A puzzle may be of any type.
    """

    @property
    def name(self) -> str: ...

    @property
    def asked(self) -> int: ...

    def sample(self, seed: int, held_out: bool = False) -> Any:
        """The puzzle of this seed: with ``held_out`` one that training never sees, else one of the others."""

    def prompt(self, puzzle: Any) -> str:
        """The question as text."""

    def verify(self, puzzle: Any, answer: str | None) -> float:
        """The correct share of an answer in [0, 1]; 0 without an answer."""

    def demonstrate(
        self,
        puzzle: Any,
        seed: int,
        mode: str = "asyncthink",
        context: str = "shared",
        pool: int = 4,
        depth: int = 1,
    ) -> Demonstration:
        """A written-out solution, a pure function of its arguments, with at most ``depth`` levels of workers.

        Raises ValueError if the task has none.
        """


def task(name: str) -> Task:
    """The task of this name, or one read from a local file: ``math:PATH``, ``countdown:PATH``.

    ``dataset:PATH?question=COLUMN&answer=COLUMN`` is read by the package ``datasets``
    (:func:`.dataset.load_dataset`), ``reasoning-gym:FAMILY`` is of that package (:class:`.reasoning_gym.ReasoningGym`).

    A tenth of a file's records is held out; with ``math-test:PATH`` and ``countdown-test:PATH`` all are. Raises
    ValueError for an unknown name, and the errors of :meth:`.math.Math.load` and :meth:`.listed.ListedCountdown.load`.
    """
    kind, colon, path = name.partition(":")
    if colon and kind.removesuffix("-test") in _FILES:
        return _FILES[kind.removesuffix("-test")](path, kind.endswith("-test"))
    if name not in TASKS:
        files = [f"{kind}{test}:PATH" for kind in _FILES for test in ("", "-test")]
        raise ValueError(f"task: expected one of {', '.join([*TASKS, *files])}, got {name!r}")
    return TASKS[name]


def tasks(names: str) -> list[Task]:
    """The tasks of comma-separated names. A file's path must not contain a comma.

    >>> [task.name for task in tasks("countdown,countdown-8")]
    ['countdown', 'countdown-8']
    """
    return [task(name) for name in names.split(",")]
