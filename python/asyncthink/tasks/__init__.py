"""Tasks: generate a puzzle, verify an answer, write a demonstration. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, cast

from asyncthink.tasks.countdown import Countdown, Puzzle
from asyncthink.tasks.dataset import load_dataset
from asyncthink.tasks.listed import ListedCountdown
from asyncthink.tasks.math import Math
from asyncthink.tasks.named import imported
from asyncthink.tasks.reasoning_gym import ReasoningGym
from asyncthink.tasks.script import Demonstration, Piece, Script
from asyncthink.tasks.sudoku import Sudoku

_BUILTIN: tuple[Task, ...] = (
    Countdown(),
    Countdown("countdown-8", count=8, most=6),
    Countdown("countdown-8x4", count=8, most=4),
    Countdown("countdown-10x4", 10, 4, pairs_alone=18, largest=20, targets=(60, 150), by_numbers=True, all_alone=0.15),
    Countdown("countdown-5x2", 5, 2, pairs_alone=10, asked=2, by_numbers=True),
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
    "task_names",
    "tasks",
]


class Task(Protocol):
    """The interface of a task: any object with these members.

    Python takes the object itself (``GRPOConfig(task=Mine())``), the command line ``--task package.module:Mine``; an
    entry in :data:`TASKS` gives it a short name. ``asked`` is the number of different correct results that a complete
    answer holds. A puzzle may be of any type. A task may also have ``split_name(puzzle)`` (:mod:`.split`).
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


_MEMBERS = ("name", "asked", "sample", "prompt", "verify", "demonstrate")


def task(spec: str | Task) -> Task:
    """A task: an object as it is, one of :data:`TASKS` by its name, one read from a local file, or an imported one.

    Files: ``math:PATH``, ``countdown:PATH``; ``dataset:PATH?question=COLUMN&answer=COLUMN`` is read by the package
    ``datasets`` (:func:`.dataset.load_dataset`). A tenth of a file's records is held out; with ``math-test:PATH`` and
    the like all are. ``reasoning-gym:FAMILY`` is of that package (:class:`.reasoning_gym.ReasoningGym`).
    ``package.module:name`` is imported (:func:`.named.imported`).

    Raises ValueError for an unknown name, for an object that is no task, and the errors of :meth:`.math.Math.load`
    and :meth:`.listed.ListedCountdown.load`.

    >>> task("asyncthink.tasks.sudoku:Sudoku").name, task(TASKS["countdown"]) is TASKS["countdown"]
    ('sudoku-4', True)
    """
    if not isinstance(spec, str):
        return _checked(spec, type(spec).__name__)
    if spec in TASKS:
        return TASKS[spec]
    kind, colon, path = spec.partition(":")
    if colon and kind.removesuffix("-test") in _FILES:
        return _FILES[kind.removesuffix("-test")](path, kind.endswith("-test"))
    if not colon:
        files = [f"{kind}{test}:PATH" for kind in _FILES for test in ("", "-test")]
        raise ValueError(f"task: expected one of {', '.join([*TASKS, *files, 'MODULE:NAME'])}, got {spec!r}")
    return _checked(imported("task", spec), spec)


def tasks(specs: str | Task | Sequence[str | Task]) -> list[Task]:
    """The tasks of comma-separated names, of one object, or of several names and objects.

    A name with a comma in it, such as a file's path, must stand in a list.

    >>> [task.name for task in tasks("countdown,countdown-8")]
    ['countdown', 'countdown-8']
    >>> [task.name for task in tasks(["countdown", TASKS["sudoku-4"]])]
    ['countdown', 'sudoku-4']
    """
    if isinstance(specs, str):
        specs = specs.split(",")
    return [task(spec) for spec in (specs if isinstance(specs, Sequence) else [specs])]


def task_names(specs: str | Task | Sequence[str | Task]) -> str:
    """The names of :func:`tasks` as one text, for a run's files.

    >>> task_names(["countdown", TASKS["sudoku-4"]])
    'countdown,sudoku-4'
    """
    if isinstance(specs, str):
        return specs
    several = specs if isinstance(specs, Sequence) else [specs]
    return ",".join(spec if isinstance(spec, str) else spec.name for spec in several)


def _checked(made: Any, spec: str) -> Task:
    if missing := [member for member in _MEMBERS if not hasattr(made, member)]:
        raise ValueError(f"task: expected an object with {', '.join(_MEMBERS)}; {spec} lacks {', '.join(missing)}")
    return cast(Task, made)
