"""A task small enough to be learned in seconds: count on from three numbers."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from asyncthink.tasks.script import Demonstration, Script
from asyncthink.tasks.topology import Parts, organize

LARGEST = 12
FURTHER = 8


@dataclass(frozen=True, slots=True)
class Counting:
    """`` 5 9 2`` asks for ``13 17 10``, reached by counting ``5:6 7 8 ...``; each number is a part."""

    name: str = "counting"
    asked: int = 3

    def sample(self, seed: int, held_out: bool = False) -> tuple[int, ...]:
        rng = random.Random(f"{seed} {held_out}")
        while True:
            numbers = tuple(rng.randint(0, LARGEST) for _ in range(self.asked))
            if (hashlib.sha256(repr(numbers).encode()).digest()[0] < 26) == held_out:
                return numbers

    def prompt(self, puzzle: tuple[int, ...]) -> str:
        return "".join(f" {number}" for number in puzzle)

    def verify(self, puzzle: tuple[int, ...], answer: str | None) -> float:
        found = [int(word) for word in re.findall(r"\d+", answer or "")][: self.asked]
        return sum(number + FURTHER in found for number in puzzle) / self.asked

    def demonstrate(
        self,
        puzzle: tuple[int, ...],
        seed: int,
        mode: str = "asyncthink",
        context: str = "shared",
        pool: int = 4,
        depth: int = 1,
    ) -> Demonstration:
        rng = random.Random(f"demonstrate {seed}")
        held: list[int] = []
        organizer = Script("organizer" if mode == "asyncthink" else "solo")

        def own(part: int) -> None:
            organizer.say(count(puzzle[part]))
            held.append(puzzle[part] + FURTHER)

        def join(index: int, returned: list[str]) -> None:
            organizer.say(f"<JOIN-{index}>")
            organizer.insert(f"{' '.join(returned)}</JOIN-{index}>")
            organizer.say("\n")
            held.extend(map(int, returned))

        def work(parts: Sequence[int], script: Script) -> list[str]:
            found = [str(puzzle[part] + FURTHER) for part in parts]
            for part in parts:
                script.say(count(puzzle[part]))
            script.say(f"<RETURN>{' '.join(found)}</RETURN>")
            return found

        def close() -> None:
            organizer.say(f"<ANSWER>{' '.join(map(str, held))}</ANSWER>")

        if mode != "asyncthink":
            for part in range(self.asked):
                own(part)
            close()
            return Demonstration(self.prompt(puzzle), mode, context, pool, [organizer])

        def named(parts: Sequence[int]) -> str:
            return "".join(f" {puzzle[part]}" for part in parts)

        scripts = organize(Parts(self.asked, named, work, own, join, close), organizer, pool, rng)
        return Demonstration(self.prompt(puzzle), mode, context, pool, scripts)


def count(number: int) -> str:
    return f"{number}:{' '.join(str(number + k) for k in range(1, FURTHER + 1))}\n"
