"""The questions of a synthesis: lines of a file, or puzzles of a task, whose answers are graded where they can be."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from asyncthink.tasks import Task
from asyncthink.tasks.data import Split, field_of, read_records
from asyncthink.tasks.math import Math, Problem

DRAWS = 100  # of a task's puzzles, for each one that is asked for


@dataclass(frozen=True, slots=True)
class Question:
    """``grade`` is the graded share of an answer in [0, 1]; None: nothing tells whether an answer is right."""

    text: str
    grade: Callable[[str], float] | None = None

    @property
    def id(self) -> str:
        """Short and the same wherever the question stands: 16 hexadecimal digits of its SHA-256."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]


def from_file(path: Path) -> list[Question]:
    """The different questions of a file, in order.

    A ``.txt`` file has one a line. The records of a ``.jsonl``, ``.json`` or ``.parquet`` file have a field
    ``question`` or ``problem``, and may have an ``answer``, by which :meth:`.math.Math.verify` grades.

    Raises ValueError for a file without questions, and as :func:`.data.read_records` does.
    """
    if path.suffix == ".txt":
        if not path.is_file():
            raise ValueError(f"questions: there is no file {path}")
        lines = path.read_text(encoding="utf-8").split("\n")
        return _different((Question(line.strip()) for line in lines if line.strip()), f"{path}")
    return _different(_records(path), f"{path}")


def _records(path: Path) -> Iterable[Question]:
    task = Math("questions", Split(path, (), ()))
    for number, record in enumerate(read_records(path), 1):
        text = field_of(record, ("question", "problem"), f"{path}, record {number}")
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"data: {path}, record {number}: expected a question as text, got {text!r:.80}")
        answer = {key.lower(): value for key, value in record.items()}.get("answer")
        if answer is None or not str(answer).strip():
            yield Question(text.strip())
        else:
            yield Question(text.strip(), functools.partial(task.verify, Problem(text.strip(), str(answer).strip())))


def from_task(task: Task, count: int) -> list[Question]:
    """The first ``count`` different training questions of a task, which grades their answers; none that is held out.

    Raises ValueError where the task has fewer.
    """
    if count < 1:
        raise ValueError(f"count: expected at least 1, got {count}")
    questions: dict[str, Question] = {}
    for seed in range(DRAWS * count):
        puzzle = task.sample(seed)
        text = task.prompt(puzzle)
        questions.setdefault(text, Question(text, functools.partial(task.verify, puzzle)))
        if len(questions) == count:
            return list(questions.values())
    raise ValueError(f"count: expected at most {len(questions)}, the different questions of {task.name}, got {count}")


def _different(questions: Iterable[Question], where: str) -> list[Question]:
    """Of equal questions the first."""
    kept: dict[str, Question] = {}
    for question in questions:
        kept.setdefault(question.text, question)
    if not kept:
        raise ValueError(f"questions: {where} holds no questions")
    return list(kept.values())
