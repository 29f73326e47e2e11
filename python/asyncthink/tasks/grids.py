"""Sudoku grids: candidates, an exact solver that counts solutions, and a generator of puzzles solved row by row."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isqrt

SIZES = (4, 9)


@dataclass(frozen=True, slots=True)
class Grid:
    """``cells`` row by row, 0 where empty; a size of 4 or 9 with square boxes.

    Raises ValueError for another number of cells or a value outside 0..size.
    """

    cells: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.cells) not in [size * size for size in SIZES]:
            raise ValueError(f"cells: expected 16 or 81 values, got {len(self.cells)}")
        wrong = [value for value in self.cells if not 0 <= value <= self.size]
        if wrong:
            raise ValueError(f"cells: expected values from 0 to {self.size}, got {wrong[0]}")

    @property
    def size(self) -> int:
        return isqrt(len(self.cells))

    def row(self, row: int) -> tuple[int, ...]:
        return self.cells[row * self.size : (row + 1) * self.size]

    def column(self, column: int) -> tuple[int, ...]:
        return self.cells[column :: self.size]

    def box(self, row: int, column: int) -> list[tuple[int, ...]]:
        """The box that contains a cell, as a list of its rows."""
        side = isqrt(self.size)
        top, left = row - row % side, column - column % side
        return [self.row(box_row)[left : left + side] for box_row in range(top, top + side)]

    def candidates(self, row: int, column: int) -> list[int]:
        """The values that no cell of the same row, column or box holds."""
        taken = {*self.row(row), *self.column(column), *(value for part in self.box(row, column) for value in part)}
        return [value for value in range(1, self.size + 1) if value not in taken]

    def relabelled(self, names: Sequence[int]) -> Grid:
        """Value v becomes ``names[v - 1]``: with a permutation of 1..size the same puzzle in other digits."""
        return Grid(tuple(names[value - 1] if value else 0 for value in self.cells))

    def with_cell(self, row: int, column: int, value: int) -> Grid:
        index = row * self.size + column
        return Grid((*self.cells[:index], value, *self.cells[index + 1 :]))


def is_consistent(grid: Grid) -> bool:
    """Whether no row, column or box holds a value twice."""
    side, indices = isqrt(grid.size), range(grid.size)
    boxes = [sum(grid.box(top, left), ()) for top in indices[::side] for left in indices[::side]]
    units = [*map(grid.row, indices), *map(grid.column, indices), *boxes]
    return all(len(filled) == len(set(filled)) for filled in ([value for value in unit if value] for unit in units))


def solutions(grid: Grid, rng: random.Random | None = None) -> Iterator[Grid]:
    """Every completion, each once, by exhaustive search: the cell with the fewest candidates first.

    ``rng`` draws the order in which values are tried. An inconsistent grid has no completion.

    >>> len(list(solutions(Grid((0,) * 16))))
    288
    """
    if is_consistent(grid):
        yield from _complete(grid, rng or random.Random(0))


def _complete(grid: Grid, rng: random.Random) -> Iterator[Grid]:
    empty = [divmod(index, grid.size) for index, value in enumerate(grid.cells) if not value]
    if not empty:
        yield grid
        return
    candidates = {cell: grid.candidates(*cell) for cell in empty}
    cell = min(empty, key=lambda cell: len(candidates[cell]))
    for value in rng.sample(candidates[cell], len(candidates[cell])):
        yield from _complete(grid.with_cell(*cell, value), rng)


def forced_row(grid: Grid, row: int) -> list[tuple[int, int]] | None:
    """(column, value) of the row's empty cells, filled from left to right; None if one has no single candidate."""
    forced: list[tuple[int, int]] = []
    for column in range(grid.size):
        if not grid.row(row)[column]:
            candidates = grid.candidates(row, column)
            if len(candidates) != 1:
                return None
            forced.append((column, candidates[0]))
            grid = grid.with_cell(row, column, candidates[0])
    return forced


def generate(rng: random.Random, size: int, empty: int) -> Grid:
    """A random puzzle whose rows can each be completed from the givens alone, so it has exactly one solution.

    Cells of a random full grid are emptied in random order, each only if :func:`forced_row` still completes every
    row. This starts over until exactly ``empty`` cells are empty, with at least one in each row.
    """
    while True:
        grid = next(solutions(Grid((0,) * size * size), rng))
        for index in rng.sample(range(size * size), size * size):
            emptied = grid.with_cell(*divmod(index, size), 0)
            if all(forced_row(emptied, row) is not None for row in range(size)):
                grid = emptied
                if grid.cells.count(0) == empty:
                    break
        if grid.cells.count(0) == empty and all(0 in grid.row(row) for row in range(size)):
            return grid
