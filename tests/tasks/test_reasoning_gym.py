"""The families of reasoning-gym as tasks: seeds, the split, the families' own grades, errors."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from asyncthink.tasks import ReasoningGym, task


def load(name: str) -> ReasoningGym:
    pytest.importorskip("reasoning_gym", reason="the extra reasoning-gym is not installed")
    known = task(name)
    assert isinstance(known, ReasoningGym)
    return known


def test_a_family_is_a_task() -> None:
    known = load("reasoning-gym:chain_sum?min_terms=2&max_terms=3")
    puzzles = [known.sample(seed) for seed in range(30)]
    assert puzzles == [load("reasoning-gym:chain_sum?min_terms=2&max_terms=3").sample(seed) for seed in range(30)]
    assert len({puzzle.question for puzzle in puzzles}) > 25
    held_out = {known.sample(seed, held_out=True).question for seed in range(30)}
    assert not held_out & {puzzle.question for puzzle in puzzles}
    puzzle = puzzles[0]
    assert known.prompt(puzzle) == puzzle.question
    right = puzzle.record["answer"]
    assert [known.verify(puzzle, answer) for answer in (right, f" {right}\n", None, " ")] == [1.0, 1.0, 0.0, 0.0]
    assert known.verify(puzzle, str(int(right) + 1)) < 0.1
    assert (known.name, known.asked) == ("reasoning-gym:chain_sum?min_terms=2&max_terms=3", 1)
    with pytest.raises(ValueError, match="has no demonstrations"):
        known.demonstrate(puzzle, 0)


def test_all_of_a_test_task_is_held_out() -> None:
    known = load("reasoning-gym-test:gcd")
    assert known.name == "reasoning-gym-test:gcd"
    assert len({known.sample(seed, held_out=True).question for seed in range(20)}) > 15
    with pytest.raises(ValueError, match="reasoning-gym-test:gcd has no training puzzles, all are held out"):
        known.sample(0)


def test_errors_say_what_was_expected() -> None:
    for name, reason in [
        ("reasoning-gym:sums", r"expected one of .*chain_sum.*, got 'sums'"),
        ("reasoning-gym:gcd?colour=1", r"gcd refuses .*colour.* it has the options .*max_value"),
        ("reasoning-gym:gcd?min_value=9&max_value=3", r"gcd refuses .*AssertionError.* it has the options "),
        ("reasoning-gym:gcd?max_value=many", r"gcd refuses .*many"),
    ]:
        with pytest.raises(ValueError, match=reason):
            load(name)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", None)
    with pytest.raises(ImportError, match=r"asyncthink-kernels\[reasoning-gym\]"):
        task("reasoning-gym:gcd")


class Family:
    """A family of one puzzle, whose grader fails at some answers."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"question": "1 + 1?\n", "answer": "2"}

    def score_answer(self, answer: str, entry: dict[str, Any]) -> float:
        return float(int(answer) * 0.5)


def test_grades_of_any_grader() -> None:
    known = ReasoningGym("reasoning-gym:toy", Family())
    puzzle = known.sample(0)
    assert puzzle.question == "1 + 1?"
    assert [known.verify(puzzle, answer) for answer in ("1", "7", "-3")] == [0.5, 1.0, 0.0]
    with pytest.warns(UserWarning, match="toy: no grade for 'two': ValueError: invalid literal"):
        assert known.verify(puzzle, "two") == 0.0
    with pytest.raises(ValueError, match="toy has no held-out puzzle among 1000"):
        known.sample(0, held_out=True)


@pytest.mark.slow
def test_every_family() -> None:
    """Each one makes puzzles and finds its own answer right."""
    pytest.importorskip("reasoning_gym", reason="the extra reasoning-gym is not installed")
    from reasoning_gym.factory import DATASETS

    wrong = []
    for family in sorted(set(DATASETS) - {"composite"}):
        known = load(f"reasoning-gym:{family}{'?size=500' if family == 'word_ladder' else ''}")
        puzzle = known.sample(0)
        if puzzle.record["answer"] is not None and known.verify(puzzle, puzzle.record["answer"]) < 1.0:
            wrong.append(family)
    assert wrong == []
