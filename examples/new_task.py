"""A task of your own: a small class with four methods. ``python examples/new_task.py`` shows a demonstration of it."""

from __future__ import annotations

import random

from asyncthink.tasks import TASKS, Demonstration, Script
from asyncthink.tasks.script import check_options
from asyncthink.tasks.split import in_held_out_share

Terms = tuple[int, ...]


class Sums:
    """Add four numbers. A worker adds the first two, the organizer the rest."""

    name, asked = "sums", 1  # an answer is asked for one result

    def sample(self, seed: int, held_out: bool = False) -> Terms:
        rng = random.Random(f"sums {seed}")
        while True:  # a tenth of all puzzles, chosen by their hash, never appears in training
            puzzle = tuple(rng.randint(1, 40) for _ in range(4))
            if in_held_out_share(str(puzzle)) == held_out:
                return puzzle

    def prompt(self, puzzle: Terms) -> str:
        return " ".join(map(str, puzzle))

    def verify(self, puzzle: Terms, answer: str | None) -> float:
        return float((answer or "").strip() == str(sum(puzzle)))

    def demonstrate(
        self, puzzle: Terms, seed: int, mode: str = "asyncthink", context: str = "shared", pool: int = 4, depth: int = 1
    ) -> Demonstration:
        check_options(mode, context, pool, depth)
        first, rest, total = sum(puzzle[:2]), sum(puzzle[2:]), sum(puzzle)
        scripts = [agent := Script("organizer" if mode == "asyncthink" else "solo")]
        if mode == "asyncthink":
            subquery = self.prompt(puzzle[:2])
            agent.say(f"<FORK-1>{subquery}</FORK-1>")
            scripts.append(Script("worker", 1, len(agent.pieces), subquery))
            scripts[1].say(f"<RETURN> {first}</RETURN>")
            agent.say(f"{puzzle[2]}+{puzzle[3]}={rest}\n<JOIN-1>")
            agent.insert(f" {first}</JOIN-1>")  # the runtime's part: what the worker returned, and the closing tag
        agent.say(f"<ANSWER>{total}</ANSWER>")
        return Demonstration(self.prompt(puzzle), mode, context, pool, scripts)


def main() -> Demonstration:
    TASKS[Sums.name] = Sums()  # training and evaluation find it by its name
    demonstration = TASKS["sums"].demonstrate(TASKS["sums"].sample(seed=0), seed=0)
    for script in demonstration.scripts:
        print(f"{script.role}: {script.text}")
    return demonstration


if __name__ == "__main__":
    main()
