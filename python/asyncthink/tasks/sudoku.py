"""Sudoku 4x4 and 9x9 with one solution, solved row by row so that workers can share the rows.

In these puzzles each row follows from the givens alone: from left to right, row, column and box leave one value for
each empty cell (:func:`.grids.generate`). 4x4 has 6 to 9 empty cells, 9x9 28 to 34.

A demonstration writes the givens of a row; then for each empty cell its column (columns are named by letters), the
other rows of its box and the remaining value; then the row: ``2: 0 0 2 0 a: 1 0 3 0, 1 0= 4 ... #2: 4 1 2 3``.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from asyncthink.tasks.grids import Grid, forced_row, generate, solutions
from asyncthink.tasks.script import Demonstration, Script, check_options
from asyncthink.tasks.split import in_held_out_share
from asyncthink.tasks.topology import Parts, organize

COLUMNS = "abcdefghi"

_LABEL = re.compile(r"#?(\d+)\s*:")
_CELL = re.compile(r"[0-9._]")


def is_held_out(puzzle: Grid) -> bool:
    """Whether the puzzle belongs to the tenth that training never sees; a pure function of its givens."""
    return in_held_out_share(f"sudoku {' '.join(map(str, puzzle.cells))}")


@dataclass(frozen=True, slots=True)
class Sudoku:
    """The task: sample a puzzle, write its question, grade an answer, demonstrate the solution.

    ``least`` to ``most`` cells are empty. Each of the ``size`` rows is one result.
    """

    name: str = "sudoku-4"
    size: int = 4
    least: int = 6
    most: int = 9

    @property
    def asked(self) -> int:
        return self.size

    def sample(self, seed: int, held_out: bool = False) -> Grid:
        """The puzzle of this seed, from the held-out tenth or from the rest.

        >>> Sudoku().sample(0) == Sudoku().sample(0)
        True
        """
        rng = random.Random(f"{self.name} {seed} {held_out}")
        digits = range(1, self.size + 1)
        while True:
            generated = generate(rng, self.size, rng.randint(self.least, self.most))
            for _ in range(20):  # permuting the digits is cheaper than generating a puzzle
                puzzle = generated.relabelled(rng.sample(digits, self.size))
                if is_held_out(puzzle) == held_out:
                    return puzzle

    def prompt(self, puzzle: Grid) -> str:
        """The question, rows numbered and 0 for an empty cell: ``1: 1 0 0 4/2: 0 0 2 0/...``."""
        return "/".join(f"{row + 1}:{_cells(puzzle.row(row))}" for row in range(self.size))

    def verify(self, puzzle: Grid, answer: str | None) -> float:
        """The share of rows that equal the solution's, in [0, 1]; 0 without an answer.

        Rows have numbers, ``1: 1 2 3 4`` or ``#1: 1 2 3 4``; of several rows with one number the first counts. Without
        numbers the answer must be a complete grid, its values with or without separators.

        >>> full = Grid((1, 2, 3, 4, 3, 4, 1, 2, 2, 1, 4, 3, 4, 3, 2, 1))
        >>> Sudoku().verify(full.with_cell(0, 0, 0), "1234 3412 2143 4312")
        0.75
        """
        solution = next(solutions(puzzle))
        rows = _read_rows(answer or "", self.size)
        return sum(rows.get(row) == solution.row(row) for row in range(self.size)) / self.size

    def demonstrate(
        self,
        puzzle: Grid,
        seed: int,
        mode: str = "asyncthink",
        context: str = "shared",
        pool: int = 4,
        depth: int = 1,
    ) -> Demonstration:
        """A written-out solution, a pure function of its arguments.

        "asyncthink": an organizer with workers in a random topology. "sequential" and "parallel": one agent solves all
        rows in random order. "part": one agent solves the rows that the question names, without any protocol. With a
        ``depth`` above 1 workers may organize their own rows.

        Raises ValueError for an unknown mode or context, for a pool without a worker, and for a puzzle in which some
        row does not follow from the givens.
        """
        check_options(mode, context, pool, depth)
        question, rng = self.prompt(puzzle), random.Random(f"demonstrate {seed}")
        if mode == "asyncthink":
            organizer = Writer(Script("organizer"), puzzle)
            prefix = question if context == "isolated" else ""
            parts = _parts(range(puzzle.size), prefix, organizer, organizer.answer)
            scripts = organize(parts, organizer.script, pool, rng, depth)
            return Demonstration(question, mode, context, pool, scripts, depth)
        rows = rng.sample(range(self.size), rng.randint(1, self.size) if mode == "part" else self.size)
        writer = Writer(Script("solo"), puzzle)
        for row in rows:
            writer.solve(row)
        writer.answer()
        return Demonstration(question + (_named(rows) if mode == "part" else ""), mode, context, pool, [writer.script])


@dataclass(slots=True)
class Writer:
    """One agent's script, with the solved rows it holds (`` #2: 4 1 2 3``): its own and returned ones."""

    script: Script
    puzzle: Grid
    rows: list[str] = field(default_factory=list)

    def solve(self, row: int) -> None:
        """Write the solution of a row, cell by cell."""
        forced = forced_row(self.puzzle, row)
        if forced is None:
            raise ValueError(f"puzzle: expected rows that follow from the givens, row {row + 1} does not")
        cells = list(self.puzzle.row(row))
        self.script.say(f"{row + 1}:{_cells(cells)}")
        for column, value in forced:
            box = self.puzzle.box(row, column)
            others = [value for index, part in enumerate(box) if index != row % len(box) for value in part]
            self.script.say(f" {COLUMNS[column]}:{_cells(self.puzzle.column(column))},{_cells(others)}= {value}")
            cells[column] = value
        self.rows.append(f" #{row + 1}:{_cells(cells)}")
        self.script.say(f"{self.rows[-1]}\n")

    def join(self, index: int, returned: list[str]) -> None:
        self.script.say(f"<JOIN-{index}>")
        self.script.insert(f"{_listed(returned)}</JOIN-{index}>")
        self.rows += returned
        self.script.say("\n")

    def give_back(self) -> None:
        """End a worker's script with its rows."""
        self.script.say(f"<RETURN>{_listed(self.rows)}</RETURN>")

    def answer(self) -> None:
        self.script.say(f"<ANSWER>{_listed(self.rows)}</ANSWER>")


def _parts(rows: Sequence[int], prefix: str, writer: Writer, close: Callable[[], None]) -> Parts:
    """The solution of ``rows`` by an organizer who writes with ``writer``, and by its workers."""

    def work(group: Sequence[int], script: Script) -> list[str]:
        worker = Writer(script, writer.puzzle)
        for part in group:
            worker.solve(rows[part])
        worker.give_back()
        return worker.rows

    def organized(group: Sequence[int], script: Script) -> tuple[Parts, list[str]]:
        inner = Writer(script, writer.puzzle)
        return _parts([rows[part] for part in group], prefix, inner, inner.give_back), inner.rows

    return Parts(
        len(rows),
        subquery=lambda group: prefix + _named(rows[part] for part in group),
        work=work,
        own=lambda part: writer.solve(rows[part]),
        join=writer.join,
        close=close,
        organized=organized,
    )


def _named(rows: Iterable[int]) -> str:
    """Rows in the wording of countdown's sub-queries, so that a model can transfer what it learned there."""
    return f" start:{','.join(str(row + 1) for row in rows)}"


def _cells(values: Iterable[int]) -> str:
    """One space before each value, so that each is one token in any position."""
    return "".join(f" {value}" for value in values)


def _listed(rows: Iterable[str]) -> str:
    """Solved rows in the order of their numbers, which have one digit."""
    return "".join(sorted(rows)) or "none"


def _read_rows(answer: str, size: int) -> dict[int, tuple[int, ...]]:
    """Row number from 0 -> values. Empty cells may be 0, ``.`` or ``_``."""
    unlabelled, *labelled = _LABEL.split(answer)
    if not labelled:
        cells = _read_cells(unlabelled)
        grid = cells if len(cells) == size * size else ()
        return {row: grid[row * size : (row + 1) * size] for row in range(size)}
    rows: dict[int, tuple[int, ...]] = {}
    for label, text in zip(labelled[::2], labelled[1::2], strict=True):
        rows.setdefault(int(label) - 1, _read_cells(text))
    return rows


def _read_cells(text: str) -> tuple[int, ...]:
    return tuple(int(cell) if cell.isdigit() else 0 for cell in _CELL.findall(text))
