"""Synthesis: its options and its questions."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from asyncthink.tasks import Countdown
from asyncthink.train.synthesize.asking import Document, Organized
from asyncthink.train.synthesize.questions import Question, from_file, from_task

pytest.importorskip("openai", reason="the extra synthesize is not installed")
from asyncthink.train.synthesize.run import Synthesis


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"samples": 0}, "samples: expected at least 1, got 0"),
        ({"attempts": 0}, "attempts: expected at least 1, got 0"),
        ({"least_score": 2}, r"least_score: expected a share in \[0, 1\], got 2"),
        ({"price_in": -1}, "price: expected at least 0, got -1"),
        ({"max_cost": 1}, "max_cost: expected a price beside it, got none"),
        ({"concurrency": 0}, "concurrency: expected at least 1, got 0"),
        ({"retries": -1}, "retries: expected at least 0, got -1"),
    ],
)
def test_options_that_are_refused(tmp_path: Path, more: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Synthesis("http://x", "m", tmp_path / "t.jsonl", Document(), **more)


def test_ways_to_ask_that_are_refused() -> None:
    for make, reason in (
        (lambda: Document(1), "pool: expected at least 2"),
        (lambda: Document(4, (3, 2)), "forks: expected 1 <= least <= most <= 999, got 3 and 2"),
        (lambda: Organized("plan", 3, (1, 3)), r"forks: expected at most 2 \(a plan forks all at once\), got 3"),
        (lambda: Organized("off"), "guide: expected plan or legal, got 'off'"),
    ):
        with pytest.raises(ValueError, match=reason):
            make()


def test_questions(tmp_path: Path) -> None:
    (tmp_path / "q.txt").write_text("one\n\n two \none\n")
    assert [question.text for question in from_file(tmp_path / "q.txt")] == ["one", "two"]
    lines = [{"question": "half of 1?", "answer": 0.5}, {"Problem": "free", "answer": None}]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, lines)))
    graded, free = from_file(tmp_path / "q.jsonl")
    assert graded.grade is not None and graded.grade("1/2") == 1.0 and graded.grade("1") == 0.0
    assert free == Question("free")
    (tmp_path / "empty.txt").write_text("\n")
    for name, reason in (("no.txt", "there is no file"), ("empty.txt", "holds no questions"), ("q.csv", "ends in")):
        with pytest.raises(ValueError, match=reason):
            from_file(tmp_path / name)
    (tmp_path / "bad.jsonl").write_text('{"question": 7}')
    with pytest.raises(ValueError, match=r"bad.jsonl, record 1: expected a question as text, got 7"):
        from_file(tmp_path / "bad.jsonl")


def test_questions_of_a_task_are_those_of_training() -> None:
    task = Countdown()
    questions = from_task(task, 20)
    assert len({question.id for question in questions}) == 20
    assert not {question.text for question in questions} & {task.prompt(task.sample(k, True)) for k in range(200)}
    puzzle = task.parse_prompt(questions[0].text)
    grade = questions[0].grade
    assert grade is not None
    text = task.demonstrate(puzzle, 0, "sequential").scripts[0].text
    answer = re.search(r"<ANSWER>(.*)</ANSWER>", text)
    assert answer is not None
    assert grade(answer[1]) == task.verify(puzzle, answer[1])
