"""Sudoku: the exact solver against brute force, puzzles with one solution, the verifier, and the written reasoning."""

from __future__ import annotations

import itertools
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncthink.tasks import TASKS, Sudoku
from asyncthink.tasks.grids import Grid, forced_row, is_consistent, solutions
from asyncthink.tasks.sudoku import COLUMNS, is_held_out

FOUR, NINE = Sudoku(), TASKS["sudoku-9"]
assert isinstance(NINE, Sudoku)
FULL = Grid((1, 2, 3, 4, 3, 4, 1, 2, 2, 1, 4, 3, 4, 3, 2, 1))
BOXES_4 = [(0, 1, 4, 5), (2, 3, 6, 7), (8, 9, 12, 13), (10, 11, 14, 15)]
LINES_4 = [range(at, at + 4) for at in (0, 4, 8, 12)] + [range(at, 16, 4) for at in range(4)]


def every_full_grid() -> set[tuple[int, ...]]:
    """All 288, from all ways to stack four permutations."""
    rows = list(itertools.permutations((1, 2, 3, 4)))
    grids = (sum(chosen, ()) for chosen in itertools.product(rows, repeat=4))
    return {g for g in grids if all(len({g[at] for at in unit}) == 4 for unit in (*LINES_4, *BOXES_4))}


EVERY = every_full_grid()


@settings(deadline=None)
@given(st.lists(st.integers(0, 4), min_size=16, max_size=16), st.integers(0, 2**16))
def test_the_solver_finds_each_completion_once(noise: list[int], kept: int) -> None:
    """Full grids with cells emptied or overwritten: as many solutions as brute force over all 288 grids."""
    base = sorted(EVERY)[kept % len(EVERY)]
    cells = tuple(noise[at] if noise[at] == 0 or at % 5 == 0 else base[at] for at in range(16))
    expected = {full for full in EVERY if all(given in (0, value) for given, value in zip(cells, full, strict=True))}
    found = [grid.cells for grid in solutions(Grid(cells))]
    assert len(found) == len(set(found))
    assert set(found) == expected
    assert is_consistent(Grid(cells)) or not expected


def test_there_are_288_grids() -> None:
    assert {grid.cells for grid in solutions(Grid((0,) * 16))} == EVERY
    assert len(EVERY) == 288


@pytest.mark.parametrize("cells", [(0,) * 15, (0,) * 36, (5,) + (0,) * 15, (-1,) + (0,) * 15])
def test_bad_grids_are_named(cells: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="cells: expected"):
        Grid(cells)


def test_a_contradiction_has_no_solution() -> None:
    in_row, in_column, in_box = (Grid((1,) + (0,) * 15).with_cell(r, c, 1) for r, c in ((0, 3), (3, 0), (1, 1)))
    assert not any(is_consistent(grid) for grid in (in_row, in_column, in_box))
    assert all(next(solutions(grid), None) is None for grid in (in_row, in_column, in_box))
    stuck = Grid((1, 2, 3, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0))  # nothing is left for the end of the first row
    assert is_consistent(stuck)
    assert list(solutions(stuck)) == []


@pytest.mark.parametrize(("task", "seeds", "empty"), [(FOUR, 80, range(6, 10)), (NINE, 3, range(28, 35))])
@pytest.mark.parametrize("held_out", [False, True])
def test_puzzles_have_one_solution_that_each_row_reaches_alone(
    task: Sudoku, seeds: int, empty: range, held_out: bool
) -> None:
    for seed in range(seeds):
        puzzle = task.sample(seed, held_out)
        assert is_held_out(puzzle) == held_out
        assert puzzle.cells.count(0) in empty
        (solution,) = solutions(puzzle)
        assert is_consistent(solution)
        for row in range(task.size):
            forced = forced_row(puzzle, row)
            assert forced
            assert [column for column, _ in forced] == [c for c, value in enumerate(puzzle.row(row)) if not value]
            assert all(solution.row(row)[column] == value for column, value in forced)


def test_a_row_that_does_not_follow_is_not_forced() -> None:
    puzzle = Grid((0,) * 15 + (1,))
    assert [forced_row(puzzle, row) for row in range(4)] == [None] * 4
    for mode in ("sequential", "asyncthink"):
        with pytest.raises(ValueError, match=r"puzzle: expected rows that follow from the givens, row \d does not"):
            FOUR.demonstrate(puzzle, 0, mode)


@pytest.mark.parametrize(
    ("answer", "share"),
    [
        ("1 2 3 4/3 4 1 2/2 1 4 3/4 3 2 1", 1.0),
        ("1234341221434321", 1.0),
        ("1,2,3,4\n3,4,1,2\n2,1,4,3\n4,3,2,1", 1.0),
        ("| 1 2 | 3 4 |\n| 3 4 | 1 2 |\n+---\n| 2 1 | 4 3 |\n| 4 3 | 2 1 |", 1.0),
        (" #1: 1 2 3 4 #2: 3 4 1 2 #3: 2 1 4 3 #4: 4 3 2 1", 1.0),
        ("row 4: 4321, row 3: 2143, row 2: 3412, row 1: 1234", 1.0),
        (" #2: 3 4 1 2", 0.25),
        (" #2: 3 4 1 2 #4: 4 3 2 1 #1: 1 2 4 3", 0.5),
        (" #2: 3 4 2 1 #2: 3 4 1 2", 0.0),  # the first of a number counts
        (" #2: 3 4 1 2 #5: 1 2 3 4 #0: 4 3 2 1 #2: 1", 0.25),
        (" #1: 1 2 3 4 5", 0.0),
        ("1 2 3 4/3 4 . _/2 1 4 3/0 3 2 1", 0.5),
        ("1 2 3 4 3 4 1 2 2 1 4 3 4 3 2", 0.0),
        ("1 2 3 4 3 4 1 2 2 1 4 3 4 3 2 1 1", 0.0),
        ("4 3 2 1/3 4 1 2/2 1 4 3/1 2 3 4", 0.5),
        ("none", 0.0),
        (None, 0.0),
    ],
)
def test_verifier(answer: str | None, share: float) -> None:
    puzzle = Grid((0, 2, 3, 4, *FULL.cells[4:]))
    assert FOUR.verify(puzzle, answer) == share


@settings(deadline=None)
@given(st.text(max_size=60))
def test_verifier_grades_any_text(answer: str) -> None:
    assert FOUR.verify(FULL, answer) in {0.0, 0.25, 0.5, 0.75, 1.0}


def test_the_question_shows_the_givens() -> None:
    assert FOUR.prompt(FULL.with_cell(1, 2, 0)) == "1: 1 2 3 4/2: 3 4 0 2/3: 2 1 4 3/4: 4 3 2 1"


@pytest.mark.parametrize("task", [FOUR, NINE], ids=lambda task: task.name)
def test_each_step_shows_what_forces_the_value(task: Sudoku) -> None:
    """Column and box as in the question; row, column and box together leave the value that follows."""
    steps = 0
    for seed in range(10 if task is FOUR else 2):
        puzzle = task.sample(seed)
        (solo,) = task.demonstrate(puzzle, seed, "sequential").scripts
        lines = solo.text.splitlines()
        assert sorted(int(line.partition(":")[0]) for line in lines[:-1]) == list(range(1, task.size + 1))
        for line in lines[:-1]:
            row = int(line.partition(":")[0]) - 1
            begun, *cells, finished = re.split(r" [a-i]:| #\d:", line)
            assert tuple(map(int, begun.split(": ")[1].split())) == puzzle.row(row)
            known = list(puzzle.row(row))
            for name, cell in zip(re.findall(r" ([a-i]):", line), cells, strict=True):
                at = COLUMNS.index(name)
                column, box, value = (tuple(map(int, part.split())) for part in re.split("[,=]", cell))
                assert column == puzzle.column(at)
                whole = sum(puzzle.box(row, at), ())
                assert sorted((*box, *puzzle.box(row, at)[row % len(puzzle.box(row, at))])) == sorted(whole)
                assert {*known, *column, *box} - {0} == set(range(1, task.size + 1)) - set(value)
                known[at] = value[0]
                steps += 1
            assert tuple(map(int, finished.split())) == tuple(known)
        assert task.verify(puzzle, re.search("<ANSWER>(.*)</ANSWER>", lines[-1])[1]) == 1.0
    assert steps > 40


def test_parts_are_rows_and_returns_are_what_was_asked() -> None:
    for seed in range(30):
        puzzle = FOUR.sample(seed)
        part = FOUR.demonstrate(puzzle, seed, "part")
        question, _, named = part.question.partition(" start:")
        assert question == FOUR.prompt(puzzle)
        assert re.findall(r"^(\d):", part.scripts[0].text, re.MULTILINE) == named.split(",")
        answer = re.search("<ANSWER>(.*)</ANSWER>", part.scripts[0].text)[1]
        assert FOUR.verify(puzzle, answer) == len(named.split(",")) / 4
        for context in ("shared", "isolated"):
            _, *workers = FOUR.demonstrate(puzzle, seed, context=context).scripts
            for worker in workers:
                told, _, rows = worker.subquery.partition(" start:")
                assert told == (question if context == "isolated" else "")
                returned = re.search("<RETURN>(.*)</RETURN>", worker.text)[1]
                assert re.findall(r" #(\d):", returned) == sorted(rows.split(","))
                assert FOUR.verify(puzzle, returned) == len(rows.split(",")) / 4


def test_held_out_is_a_tenth() -> None:
    rng = random.Random(0)
    puzzles = [Grid(tuple(rng.randint(0, 4) for _ in range(16))) for _ in range(4000)]
    assert sum(map(is_held_out, puzzles)) / len(puzzles) == pytest.approx(0.1, abs=0.02)
