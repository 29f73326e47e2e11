"""Drills for the search of countdown-10x4: what a model of 2.5M parameters does not learn from searches alone.

A demonstration of the search asks some ten times in 900 tokens whether a number is among the puzzle's. In 20 million
tokens a model learned that for the numbers 3 to 11 and not for 2 and 12 to 20, and found half of the solutions.
``THIRDS`` asks nothing else, a dozen times in fifty tokens, and was learned in 500 steps. ``PAIRS`` is one line
of the search. ``NEAR`` is the whole search with a target that many pairs come near. ``ALONE`` is the puzzle itself, its
four solutions found by one agent that may search everything. ``EVEN`` is the puzzle itself, too: organizers deal the
search evenly, and one agent alone fills a budget of 460 tokens. Numbers are held out as those of countdown-10x4 are; no
other drill has an organizer.
"""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass
from typing import Any

from asyncthink.tasks import Countdown, Demonstration, Puzzle, task
from asyncthink.tasks.script import Script
from asyncthink.tasks.search import Writer, search_pair
from asyncthink.tasks.split import in_held_out_share

ASKED = 12
TASK: Any = task("countdown-10x4")


@dataclass(frozen=True, slots=True)
class Listed(Puzzle):
    """A puzzle and what its question lists: numbers to look for, or a pair to try."""

    listed: tuple[int, ...] = ()


class Drill(Countdown):
    """A question that lists something beside the puzzle; one agent answers it, in any mode."""

    def prompt(self, puzzle: Puzzle) -> str:
        assert isinstance(puzzle, Listed)
        return f"{Countdown.prompt(self, puzzle)} a:{','.join(map(str, puzzle.listed))}"

    def verify(self, puzzle: Puzzle, answer: str | None) -> float:
        """A drill is only demonstrated."""
        raise NotImplementedError(self.name)

    def demonstrate(
        self,
        puzzle: Puzzle,
        seed: int,
        mode: str = "asyncthink",
        context: str = "shared",
        pool: int = 4,
        depth: int = 1,
    ) -> Demonstration:
        assert isinstance(puzzle, Listed)
        writer = Writer(Script("solo"), self.largest)
        self.write(puzzle, writer)
        writer.answer(self.asked)
        return Demonstration(self.prompt(puzzle), "sequential", "shared", pool, [writer.script])

    def write(self, puzzle: Listed, writer: Writer) -> None:
        """Write what stands before the answer."""
        raise NotImplementedError

    def numbers(self, rng: random.Random, held_out: bool) -> tuple[int, ...]:
        """Numbers of a puzzle from the part of the split that is asked for."""
        while True:
            numbers = tuple(sorted(rng.sample(range(2, self.largest + 1), self.count)))
            if in_held_out_share(self.split_name(Puzzle(numbers, 0))) == held_out:
                return numbers


class Thirds(Drill):
    """``+17 a:,+4,``: behind each listed number whether the puzzle has it."""

    def sample(self, seed: int, held_out: bool = False) -> Puzzle:
        rng = random.Random(f"{self.name} {seed} {held_out}")
        numbers = self.numbers(rng, held_out)
        listed = tuple(rng.sample(range(1, self.largest + 1), ASKED))
        return Listed(numbers, rng.randint(*self.targets), listed)

    def write(self, puzzle: Listed, writer: Writer) -> None:
        for number in puzzle.listed:
            writer.script.say(f"+{number} a:," if number in puzzle.numbers else f"+{number},")
        writer.script.say("\n")


class Pairs(Drill):
    """One line of the search, of a pair that a third number leads to the target; half of these are the puzzle's."""

    def sample(self, seed: int, held_out: bool = False) -> Puzzle:
        rng = random.Random(f"{self.name} {seed} {held_out}")
        while True:
            numbers = self.numbers(rng, held_out)
            a, b = sorted(rng.sample(numbers, 2))
            third = rng.randint(2, self.largest)
            if (third in numbers) != (rng.random() < 0.5):
                continue
            result = rng.choice((a + b, b - a, a * b, a * b))
            target = rng.choice((result + third, result - third, result * third))
            if numbers[-1] < target <= self.targets[1]:
                return Listed(numbers, target, (a, b))

    def write(self, puzzle: Listed, writer: Writer) -> None:
        writer.write(search_pair(puzzle.numbers, puzzle.target, *puzzle.listed, self.largest))


def named(kind: type[Countdown], name: str, **changed: Any) -> Countdown:
    return kind(**(asdict(TASK) | {"name": f"countdown-10-{name}"} | changed))


THIRDS = named(Thirds, "thirds")
PAIRS = named(Pairs, "pairs")
NEAR = named(Countdown, "near", most=10**9, pairs_alone=45, targets=(30, 90), all_alone=0.0)
ALONE = named(Countdown, "alone", all_alone=1.0)
EVEN = named(Countdown, "even", even=True, pairs_alone=21, all_alone=0.0)
