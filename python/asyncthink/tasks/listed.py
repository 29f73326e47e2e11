"""Countdown puzzles from a local file with the fields ``index``, ``target``, ``available_numbers``, ``solutions``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from asyncthink.tasks.countdown import LARGEST, SMALLEST, Countdown, Puzzle, hashed_name
from asyncthink.tasks.data import Record, Split, field_of, read_records
from asyncthink.tasks.script import Demonstration
from asyncthink.tasks.search import LABELS, find_all


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedCountdown(Countdown):
    """:class:`.countdown.Countdown` with puzzles from a file instead of a generator."""

    puzzles: Split[Puzzle]

    @classmethod
    def load(cls, path: Path | str, test: bool = False) -> ListedCountdown:
        """The puzzles of a ``.jsonl``, ``.json`` or ``.parquet`` file; a tenth is held out, with ``test`` all are.

        The same hash holds out a tenth of the generated puzzles. With ``test``, a generator or another file may hold
        the same puzzles.

        ``available_numbers`` may repeat a number and have any order. ``solutions`` is a list of expressions. Each is
        checked: it must equal the target (``= 24`` may follow) and use each number at most as often as it is
        available. ``index`` is not used.

        Raises ValueError as :func:`.data.read_records` does, and for a record that is not such a puzzle.
        """
        path = Path(path)
        puzzles = [_puzzle(record, f"{path}, record {n}") for n, record in enumerate(read_records(path), 1)]
        split = Split.of(path, puzzles, hashed_name, test)
        return cls(name=f"countdown{'-test' if test else ''}:{path}", puzzles=split)

    def sample(self, seed: int, held_out: bool = False) -> Puzzle:
        """Puzzle number ``seed`` of the held-out or the training puzzles, modulo their number."""
        return self.puzzles.pick(seed, held_out)

    def demonstrate(
        self,
        puzzle: Puzzle,
        seed: int,
        mode: str = "asyncthink",
        context: str = "shared",
        pool: int = 4,
        depth: int = 1,
    ) -> Demonstration:
        """As :meth:`.countdown.Countdown.demonstrate`. Also raises ValueError for a puzzle outside its search.

        That is a puzzle with a repeated number, a number outside 2..13, a target that is not above all numbers, or more
        than nine solutions.
        """
        numbers = puzzle.numbers
        generated = len(set(numbers)) == len(numbers) and numbers[0] >= SMALLEST and numbers[-1] <= LARGEST
        if not generated or puzzle.target <= numbers[-1]:
            raise ValueError(
                f"puzzle: expected different numbers from {SMALLEST} to {LARGEST} and a larger target, got "
                f"{self.prompt(puzzle)!r}"
            )
        if len(find_all(numbers, puzzle.target)) > len(LABELS):
            raise ValueError(f"puzzle: expected at most {len(LABELS)} solutions, {self.prompt(puzzle)!r} has more")
        return Countdown.demonstrate(self, puzzle, seed, mode, context, pool, depth)


def _puzzle(record: Record, where: str) -> Puzzle:
    target = field_of(record, ["target"], where)
    numbers = field_of(record, ["available_numbers"], where)
    solutions = field_of(record, ["solutions"], where)
    if not _natural(target):
        raise ValueError(f"data: {where}: expected a target of 1 or more, got {target!r:.80}")
    if not isinstance(numbers, list) or len(numbers) < 2 or not all(map(_natural, numbers)):
        raise ValueError(f"data: {where}: expected available_numbers as two or more integers, got {numbers!r:.80}")
    puzzle = Puzzle(tuple(sorted(numbers)), target)
    if not isinstance(solutions, list) or not all(isinstance(text, str) for text in solutions):
        raise ValueError(f"data: {where}: expected solutions as a list of expressions, got {solutions!r:.80}")
    for text in solutions:
        if not Countdown().correct(puzzle, text):
            raise ValueError(f"data: {where}: solution {text!r:.80} does not make {target} of {sorted(numbers)}")
    return puzzle


def _natural(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value < 10**6
