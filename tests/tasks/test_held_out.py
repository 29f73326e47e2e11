"""Held-out puzzles: by sets of numbers, and in two halves."""

from __future__ import annotations

import pytest

from asyncthink.tasks import TASKS, Puzzle, task
from asyncthink.tasks.countdown import is_held_out
from asyncthink.tasks.held_out import for_validation, held_out
from asyncthink.tasks.search import find_all
from asyncthink.tasks.split import in_held_out_share

TEN = TASKS["countdown-10x4"]


def test_no_held_out_puzzle_has_the_numbers_of_a_training_puzzle() -> None:
    """With the hash of numbers and target, as in the other tasks, nearly all would."""
    training = [TEN.sample(seed) for seed in range(12)]
    unseen = [TEN.sample(seed, held_out=True) for seed in range(12)]
    for puzzle, side in [*((puzzle, False) for puzzle in training), *((puzzle, True) for puzzle in unseen)]:
        assert len(puzzle.numbers) == 10 and 60 <= puzzle.target <= 150 and puzzle.numbers[-1] <= 20
        assert len(find_all(puzzle.numbers, puzzle.target, 20)) == 4
        for target in range(60, 151):
            assert in_held_out_share(TEN.split_name(Puzzle(puzzle.numbers, target))) is side  # type: ignore[attr-defined]
    assert not all(is_held_out(puzzle) for puzzle in unseen)


@pytest.mark.parametrize("name", ["countdown", "countdown-10x4", "sudoku-4"])
def test_validation_and_test_are_halves_of_what_is_held_out(name: str) -> None:
    known = task(name)
    puzzles = [known.sample(seed, held_out=True) for seed in range(16)]
    halves = {part: held_out(known, 4, part=part) for part in ("validation", "test")}  # type: ignore[arg-type]
    assert all(for_validation(known, puzzle) for puzzle in halves["validation"])
    assert not any(for_validation(known, puzzle) for puzzle in halves["test"])
    assert {for_validation(known, puzzle) for puzzle in puzzles} == {True, False}
    if name == "countdown-10x4":  # all targets of the same numbers are in the same half
        numbers = puzzles[0].numbers
        assert len({for_validation(known, Puzzle(numbers, target)) for target in range(60, 151)}) == 1


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="part: expected one of all, validation, test, got 'train'"):
        held_out(TEN, 1, part="train")  # type: ignore[arg-type]
