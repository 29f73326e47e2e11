"""Multi-solution countdown (AsyncThink, arXiv 2510.26658): find four different expressions that equal a target.

An expression may use each of the given numbers once. Arithmetic is exact over the rationals. Two expressions are
different if commuting and re-associating cannot turn one into the other (:class:`.expressions.Expression`).

Demonstrations search all expressions of two or three of the numbers. ``countdown`` has seven numbers and 4 or 5
solutions in that space, ``countdown-8`` eight numbers and 4 to 6, ``countdown-8x4`` eight numbers and exactly 4. They
hold out puzzles. ``countdown-10x4`` has ten numbers of 2..20, targets of 60..150 and exactly 4 solutions, and holds out
sets of numbers: no held-out puzzle shares its ten numbers with one of training. ``countdown-5x2`` is small enough for a
pretrained model whose tokens are characters: five numbers, both of two solutions, held out by numbers, too.
"""

from __future__ import annotations

import functools
import itertools
import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from asyncthink.tasks.expressions import Expression, combine, number, parse
from asyncthink.tasks.script import Demonstration, Script, check_options
from asyncthink.tasks.search import REACH, Writer, find_all, search_alone, search_as_worker
from asyncthink.tasks.split import in_held_out_share
from asyncthink.tasks.topology import Parts, organize

ASKED = 4
SMALLEST, LARGEST = 2, REACH
LARGEST_TARGET = 60

_SEPARATOR = re.compile(r"[\n,;]|#\d+:")


@dataclass(frozen=True, slots=True)
class Puzzle:
    """``numbers`` ascending and distinct, ``target`` larger than each of them."""

    numbers: tuple[int, ...]
    target: int


def solutions(numbers: Iterable[int], target: int, most_numbers: int) -> dict[str, Expression]:
    """Every expression of at most ``most_numbers`` of ``numbers`` that equals ``target``, one per key; exhaustive.

    >>> sorted(solutions((2, 3, 4), 24, 3))
    ['(*2*3*4)']
    """
    values = tuple(numbers)
    by_key: dict[str, Expression] = {}
    for size in range(1, most_numbers + 1):
        for chosen in itertools.combinations(values, size):
            for expression in _expressions(tuple(sorted(chosen))):
                if expression.value == target:
                    by_key.setdefault(expression.key, expression)
    return by_key


@functools.lru_cache(maxsize=4096)
def _expressions(numbers: tuple[int, ...]) -> tuple[Expression, ...]:
    """All different expressions that use each of ``numbers`` exactly once."""
    if len(numbers) == 1:
        return (number(numbers[0]),)
    by_key: dict[str, Expression] = {}
    indices = range(len(numbers))
    for size in range(1, len(numbers)):
        for left_indices in itertools.combinations(indices, size):
            lefts = _expressions(tuple(numbers[i] for i in left_indices))
            rights = _expressions(tuple(numbers[i] for i in indices if i not in left_indices))
            for left, right in itertools.product(lefts, rights):
                for operator in "+-*/":
                    if operator != "/" or right.value:
                        expression = combine(left, operator, right)
                        by_key.setdefault(expression.key, expression)
    return tuple(by_key.values())


def is_held_out(puzzle: Puzzle) -> bool:
    """Whether the puzzle belongs to the tenth that training never sees; a pure function of numbers and target."""
    return in_held_out_share(hashed_name(puzzle))


def hashed_name(puzzle: Puzzle) -> str:
    """The text whose hash decides whether a puzzle is held out, generated or from a file."""
    return f"countdown {' '.join(map(str, puzzle.numbers))} {puzzle.target}"


@dataclass(frozen=True, slots=True)
class Countdown:
    """The task: sample a puzzle, write its question, grade an answer, demonstrate a solution.

    A puzzle has ``count`` numbers from 2 to ``largest``, a target above them within ``targets``, and ``asked`` (4) to
    ``most`` solutions of two or three numbers. In a demonstration without workers one agent searches at most
    ``pairs_alone`` pairs, or, in the share ``all_alone`` of them, all of them. ``by_numbers``: all puzzles of the same
    numbers are held out together. ``even``: organizers deal the search evenly, for a short critical path, and one
    agent searches as much as ``pairs_alone`` allows; otherwise both are random.
    """

    name: str = "countdown"
    count: int = 7
    most: int = 5
    pairs_alone: int = 12
    asked: int = ASKED
    largest: int = LARGEST
    targets: tuple[int, int] = (SMALLEST, LARGEST_TARGET)
    by_numbers: bool = False
    all_alone: float = 0.0
    even: bool = False

    def sample(self, seed: int, held_out: bool = False) -> Puzzle:
        """The puzzle of this seed, drawn uniformly from the held-out tenth or from the rest.

        >>> Countdown().sample(0) == Countdown().sample(0)
        True
        """
        rng = random.Random(f"{self.name} {seed} {held_out}")
        while True:
            numbers = tuple(sorted(rng.sample(range(SMALLEST, self.largest + 1), self.count)))
            puzzle = Puzzle(numbers, rng.randint(max(numbers[-1] + 1, self.targets[0]), self.targets[1]))
            if in_held_out_share(self.split_name(puzzle)) != held_out:
                continue
            if self.asked <= len(find_all(puzzle.numbers, puzzle.target, self.largest)) <= self.most:
                return puzzle

    def split_name(self, puzzle: Puzzle) -> str:
        """The text whose hash decides to which part of the split the puzzle belongs (:mod:`.split`)."""
        return f"countdown {' '.join(map(str, puzzle.numbers))}" if self.by_numbers else hashed_name(puzzle)

    def prompt(self, puzzle: Puzzle) -> str:
        """The question, for example ``24 from 2 3 5 7 9 11``."""
        return f"{puzzle.target} from {' '.join(map(str, puzzle.numbers))}"

    def parse_prompt(self, question: str) -> Puzzle:
        """The puzzle of a question written by :meth:`prompt`; raises ValueError for any other text."""
        match = re.fullmatch(r"(\d{1,6}) from (\d{1,6}(?: \d{1,6})*)", question.strip())
        if match is None:
            raise ValueError(f"question: expected 'TARGET from N N N ...', got {question!r}")
        return Puzzle(tuple(map(int, match[2].split())), int(match[1]))

    def correct(self, puzzle: Puzzle, answer: str) -> list[str]:
        """The different correct expressions among the first ones of a free-text answer.

        Expressions are separated by new lines, commas, semicolons or labels ``#1:``; ``= 24`` may follow one. Only
        the first :attr:`asked` count, so that more guesses earn nothing.
        """
        pieces = [piece.strip() for piece in _SEPARATOR.split(answer)]
        kept: dict[str, str] = {}
        for piece in [piece for piece in pieces if piece][: self.asked]:
            left, equals, right = piece.partition("=")
            try:
                expression = parse(left)
            except ValueError:
                continue
            if equals and right.strip() != str(puzzle.target):
                continue
            if expression.value == puzzle.target and _available(expression.numbers, puzzle.numbers):
                kept.setdefault(expression.key, left.strip())
        return list(kept.values())

    def verify(self, puzzle: Puzzle, answer: str | None) -> float:
        """``(different correct expressions) / asked`` in [0, 1]; an absent answer is 0.

        >>> Countdown().verify(Puzzle((2, 3, 4, 5, 6, 7), 21), "3*7, 7*3, 2*7+3+4 = 21, 9")
        0.5
        """
        return len(self.correct(puzzle, answer)) / self.asked if answer else 0.0

    def union(self, puzzle: Puzzle, answers: Iterable[str]) -> str:
        """One answer from those of several agents: the first four different expressions that equal the target.

        This checks arithmetic and uses no solution. Of each answer only the first four expressions count.

        >>> Countdown().union(Puzzle((2, 3, 4, 5, 6, 7), 21), [" #1:3*7 #2:9", "7*3, 2*7+3+4"])
        ' #1:3*7 #2:2*7+3+4'
        """
        kept: dict[str, str] = {}
        for answer in answers:
            for text in self.correct(puzzle, answer):
                kept.setdefault(parse(text).key, text)
        return "".join(f" #{number}:{text}" for number, text in enumerate([*kept.values()][: self.asked], 1))

    def demonstrate(
        self,
        puzzle: Puzzle,
        seed: int,
        mode: str = "asyncthink",
        context: str = "shared",
        pool: int = 4,
        depth: int = 1,
    ) -> Demonstration:
        """A written-out solution, a pure function of its arguments.

        "asyncthink": an organizer with workers in a random topology, or an even one. "sequential" and "parallel": one
        agent searches some of the parts in random order, as many as :attr:`pairs_alone` allows. "part": one agent
        searches the parts that the question names, without any protocol. With a ``depth`` above 1 workers may organize
        their own parts.

        Raises ValueError for an unknown mode or context and for a pool without a worker.
        """
        check_options(mode, context, pool, depth)
        question, rng = self.prompt(puzzle), random.Random(f"demonstrate {seed}")
        if mode != "asyncthink":
            starts = self._some_starts(puzzle, rng)
            if mode == "part":
                question += _named(starts)
            scripts = [search_alone(puzzle.numbers, puzzle.target, self.asked, starts, self.largest)]
            return Demonstration(question, mode, context, pool, scripts)
        prefix = question if context == "isolated" else ""
        writer = Writer(Script("organizer"), self.largest)
        parts = _parts(puzzle, puzzle.numbers[:-1], prefix, writer, lambda: writer.answer(self.asked), self.even)
        return Demonstration(question, mode, context, pool, organize(parts, writer.script, pool, rng, depth), depth)

    def _some_starts(self, puzzle: Puzzle, rng: random.Random) -> list[int]:
        """Starts in random order within :attr:`pairs_alone`; unless :attr:`even`, one time in five within a random
        smaller limit.

        In the share :attr:`all_alone` all of them.
        """
        starts = rng.sample(puzzle.numbers[:-1], len(puzzle.numbers) - 1)
        if self.all_alone and rng.random() < self.all_alone:
            return starts
        room = self.pairs_alone if self.even or rng.random() < 0.8 else rng.randint(1, self.pairs_alone)
        kept = []
        for start in starts:
            pairs = len(puzzle.numbers) - 1 - puzzle.numbers.index(start)
            if pairs <= room:
                kept.append(start)
                room -= pairs
        return kept or [puzzle.numbers[-2]]


def _parts(
    puzzle: Puzzle, starts: Sequence[int], prefix: str, writer: Writer, close: Callable[[], None], even: bool
) -> Parts:
    """The search of ``starts`` by an organizer who writes with ``writer``, and by its workers."""

    def own(part: int) -> None:
        writer.search(puzzle.numbers, puzzle.target, starts[part])

    def organized(group: Sequence[int], script: Script) -> tuple[Parts, list[str]]:
        inner = Writer(script, writer.reach)
        return _parts(puzzle, [starts[part] for part in group], prefix, inner, inner.give_back, even), inner.solutions

    return Parts(
        len(starts),
        subquery=lambda group: prefix + _named([starts[part] for part in group]),
        work=lambda group, script: search_as_worker(
            puzzle.numbers, puzzle.target, [starts[part] for part in group], script, writer.reach
        ),
        own=own,
        join=writer.join,
        close=close,
        organized=organized,
        sizes=[len(puzzle.numbers) - 1 - puzzle.numbers.index(start) for start in starts] if even else (),
    )


def _named(starts: Iterable[int]) -> str:
    return f" start:{','.join(map(str, starts))}"


def _available(used: tuple[int, ...], numbers: tuple[int, ...]) -> bool:
    return all(used.count(value) <= numbers.count(value) for value in set(used))
