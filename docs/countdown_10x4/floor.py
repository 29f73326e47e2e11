"""``python docs/countdown_10x4/floor.py [--task NAME] [--puzzles N]``: the shortest critical paths of a task.

For each puzzle, every way to give the parts of the search (one a starting number) to an organizer and up to POOL - 1
workers is tried. Agents write what the demonstrations write, nothing else: all forks first, joins in the order in which
workers end. The floor is the shortest path; a trace that searches everything alone, without stopping early, is beside
it. ``independent`` is the share of puzzles in which POOL agents, each searching parts in random order while they fit
into the budget, hold all solutions between them. Counts are tokens of the number-level tokenizer.
"""

from __future__ import annotations

import argparse
import functools
import json
import random
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from asyncthink.tasks import Countdown, Puzzle, task
from asyncthink.tasks.held_out import held_out
from asyncthink.tasks.script import Script
from asyncthink.tasks.search import Writer
from asyncthink.train.tokenizer import build_tokenizer

TOKENIZER = build_tokenizer()
Ints = NDArray[np.int64]


def count(text: str) -> int:
    return len(TOKENIZER.encode(text, add_special_tokens=False)) if text else 0


@functools.cache
def owners(parts: int, agents: int) -> Ints:
    """[agents, agents ** parts]: for each way to deal the parts, the set of parts of each agent as bits."""
    dealt = np.arange(agents**parts)
    sets = np.zeros((agents, len(dealt)), np.int64)
    for part in range(parts):
        owner = dealt // agents**part % agents
        for agent in range(agents):
            sets[agent] |= (owner == agent).astype(np.int64) << part
    return sets


def of_sets(values: list[int]) -> Ints:
    """[2 ** parts]: the sum of the values of each set of parts."""
    sums = np.zeros(1, np.int64)
    for value in values:
        sums = np.concatenate([sums, sums + value])
    return sums


def searches(known: Countdown, puzzle: Puzzle) -> tuple[list[int], list[list[str]]]:
    """Tokens, and solutions, of each part of the search."""
    searched, found = [], []
    for start in puzzle.numbers[:-1]:
        writer = Writer(Script("solo"), known.largest)
        writer.search(puzzle.numbers, puzzle.target, start)
        searched.append(count(writer.script.text))
        found.append(writer.solutions)
    return searched, found


def independent(known: Countdown, puzzle: Puzzle, pool: int, budget: int, draws: int = 20) -> float:
    """The share of draws in which ``pool`` agents find all solutions between them."""
    searched, found = searches(known, puzzle)
    rng, solved = random.Random(known.prompt(puzzle)), 0
    for _ in range(draws):
        parts: set[int] = set()
        for _ in range(pool):
            room = budget
            for part in rng.sample(range(len(searched)), len(searched)):
                if searched[part] <= room:
                    room -= searched[part]
                    parts.add(part)
        solved += sum(len(found[part]) for part in parts) >= known.asked
    return solved / draws


def floors(known: Countdown, puzzle: Puzzle, pool: int) -> dict[str, int]:
    """Tokens of the search alone, and of the shortest path with 0 to ``pool - 1`` workers."""
    starts = puzzle.numbers[:-1]
    searched, found = searches(known, puzzle)
    solutions = [solution for group in found for solution in group][: known.asked]
    answer = count(f"<ANSWER>{''.join(f' #{k}:{text}' for k, text in enumerate(solutions, 1))}</ANSWER>")
    search = of_sets(searched)
    # A worker's return: its tags, and a label and an expression for each solution; "none" without any.
    listed = of_sets([sum(1 + count(text) for text in group) for group in found])
    worker = search + np.where(listed > 0, listed, count("none")) + 2
    # A fork: its tags, " start:", the numbers with commas between them, and the line feed behind it.
    numbers, sizes = of_sets([count(str(start)) for start in starts]), of_sets([1] * len(starts))
    fork = 3 + numbers + np.maximum(sizes - 1, 0) + 1
    join = 2  # <JOIN-i> and a line feed; what the runtime inserts costs no step
    made = {"alone": int(search[-1]) + answer}
    for workers in range(1, pool):
        organizer, *others = owners(len(starts), workers + 1)
        forked = np.cumsum(np.stack([fork[group] for group in others]), axis=0)
        ends = np.sort(forked - 1 + np.stack([worker[group] for group in others]), axis=0)
        clock = forked[-1] + search[organizer]
        for end in ends:
            clock = np.maximum(clock + 1, end) + join - 1
        made[f"{workers} workers"] = int(clock.min()) + answer
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="countdown-10x4")
    parser.add_argument("--puzzles", type=int, default=200)
    parser.add_argument("--part", default="validation")
    parser.add_argument("--pool", type=int, default=4)
    parser.add_argument("--budget", type=int, default=410)
    options = parser.parse_args()
    known: Any = task(options.task)
    puzzles = held_out(known, options.puzzles, part=options.part)
    made = [floors(known, puzzle, options.pool) for puzzle in puzzles]
    means = {name: round(fmean(one[name] for one in made), 1) for name in made[0]}
    best = min(means, key=lambda name: means[name])
    shares = [independent(known, puzzle, options.pool, options.budget) for puzzle in puzzles]
    result = {"task": options.task, "puzzles": len(puzzles), "tokens": means, "shortest": best}
    print(json.dumps(result | {f"independent within {options.budget}": round(fmean(shares), 3)}))


if __name__ == "__main__":
    main()
