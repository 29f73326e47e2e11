"""What a cold start learns from: tasks that write their own demonstrations, and written traces (``traces:PATH``).

``solo:TASK`` is a task that only one agent alone demonstrates: an organizer that solves it has learned to organize
elsewhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asyncthink.tasks import Demonstration, Task, task
from asyncthink.tasks.split import HELD_OUT_SHARE
from asyncthink.train.traces import WrittenTrace, read_traces

PREFIX = "traces:"
SOLO = "solo:"


@dataclass(frozen=True, slots=True)
class Traces:
    """The traces of a file (:mod:`.traces`) as a task that demonstrates them.

    A trace keeps its own mode, pool and depth, whatever the mixture asks for; only the context is the mixture's. The
    tenth of the questions with the smallest SHA-256, and one at least, is held out.
    """

    name: str
    training: tuple[WrittenTrace, ...]
    held_out: tuple[WrittenTrace, ...]
    asked: int = 1

    @classmethod
    def load(cls, path: Path | str) -> Traces:
        """Raises ValueError as :func:`.traces.read_traces` does, and for a file with a single question."""
        traces = read_traces(path)
        questions = sorted({trace.question for trace in traces}, key=_digest)
        if len(questions) < 2:
            raise ValueError(f"traces: expected two questions or more in {path} (one is held out), got 1")
        kept = set(questions[max(1, len(questions) // HELD_OUT_SHARE) :])
        training = tuple(trace for trace in traces if trace.question in kept)
        held_out = tuple(trace for trace in traces if trace.question not in kept)
        return cls(f"{PREFIX}{path}", training, held_out)

    def sample(self, seed: int, held_out: bool = False) -> WrittenTrace:
        """Trace number ``seed`` of the held-out or the training ones, modulo their number."""
        traces = self.held_out if held_out else self.training
        return traces[seed % len(traces)]

    def prompt(self, puzzle: WrittenTrace) -> str:
        return puzzle.question

    def verify(self, puzzle: WrittenTrace, answer: str | None) -> float:
        """1.0 for the text of the trace's own answer, without spaces around it; else 0.0."""
        return float(answer is not None and answer.strip() == puzzle.answer.strip())

    def demonstrate(
        self,
        puzzle: WrittenTrace,
        seed: int,
        mode: str = "asyncthink",
        context: str = "shared",
        pool: int = 4,
        depth: int = 1,
    ) -> Demonstration:
        """The trace, in ``context``. Raises ValueError for one with more levels of workers than ``depth``."""
        if puzzle.depth > depth:
            raise ValueError(
                f"depth: expected at least {puzzle.depth} for the trace of {puzzle.question!r:.80}, got {depth}"
            )
        return puzzle.demonstration(context)


@dataclass(frozen=True, slots=True)
class Alone:
    """A task whose demonstrations are all by one agent alone, whatever the mixture asks for."""

    task: Task

    @property
    def name(self) -> str:
        return f"{SOLO}{self.task.name}"

    @property
    def asked(self) -> int:
        return self.task.asked

    def sample(self, seed: int, held_out: bool = False) -> Any:
        return self.task.sample(seed, held_out)

    def prompt(self, puzzle: Any) -> str:
        return self.task.prompt(puzzle)

    def verify(self, puzzle: Any, answer: str | None) -> float:
        return self.task.verify(puzzle, answer)

    def demonstrate(
        self,
        puzzle: Any,
        seed: int,
        mode: str = "asyncthink",
        context: str = "shared",
        pool: int = 4,
        depth: int = 1,
    ) -> Demonstration:
        """That of mode "sequential", or of "part" where it is asked for."""
        return self.task.demonstrate(puzzle, seed, "part" if mode == "part" else "sequential", "shared", pool, depth)


def demonstrated(specs: str | Task | Sequence[str | Task]) -> list[Task]:
    """The tasks of :func:`asyncthink.tasks.tasks`; ``traces:PATH`` and ``solo:TASK`` may be among them.

    >>> [source.name for source in demonstrated("countdown,solo:sudoku-4")]
    ['countdown', 'solo:sudoku-4']
    """
    if isinstance(specs, str):
        specs = specs.split(",")
    return [_source(spec) for spec in (specs if isinstance(specs, Sequence) else [specs])]


def _source(spec: str | Task) -> Task:
    if isinstance(spec, str) and spec.startswith(PREFIX):
        return Traces.load(spec.removeprefix(PREFIX))
    if isinstance(spec, str) and spec.startswith(SOLO):
        return Alone(task(spec.removeprefix(SOLO)))
    return task(spec)


def _digest(question: str) -> bytes:
    return hashlib.sha256(question.encode()).digest()
