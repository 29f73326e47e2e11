"""``covered.py MODE=MODEL=TEMPERATURE ... [--puzzles N]``: which pairs agents search, and how many solutions lie there.

Each solution is found from one pair (:mod:`asyncthink.tasks.search`). For every model: the lines of the search that its
agents write a puzzle, and the share of the puzzles' solutions whose pair is among them, found or not. On validation
puzzles, at most 460 tokens an agent.
"""

from __future__ import annotations

import argparse
import re
from typing import Any

import torch

from asyncthink import ForkJoinSampler, SamplingParams
from asyncthink.tasks import task
from asyncthink.tasks.held_out import held_out
from asyncthink.tasks.search import search_pair

TASK: Any = task("countdown-10x4")
_LINE = re.compile(r"^(\d+)\+(\d+)=", re.MULTILINE)


def pairs_written(text: str) -> list[tuple[int, int]]:
    """The pairs whose lines stand in a text.

    >>> pairs_written("3+15=18+15,15-3=12\\n3+17=20,17-3=14")
    [(3, 15), (3, 17)]
    """
    return [(int(a), int(b)) for a, b in _LINE.findall(text)]


def solving_pairs(puzzle: Any) -> set[tuple[int, int]]:
    """The pairs from which a puzzle's solutions are found."""
    numbers = puzzle.numbers
    return {
        (a, b)
        for place, a in enumerate(numbers)
        for b in numbers[place + 1 :]
        if any(finding.solution for finding in search_pair(numbers, puzzle.target, a, b, TASK.largest))
    }


def covered(mode: str, model: str, temperature: float, puzzles: int) -> tuple[float, float]:
    """Lines a puzzle, and the share of solving pairs among them."""
    asked = held_out(TASK, puzzles, 2_000_000, "validation")
    sampler = ForkJoinSampler(model, mode=mode, pool=4)
    params = SamplingParams(temperature=temperature, max_tokens=460, seed=0)
    lines = inside = solving = 0
    for puzzle, episode in zip(asked, sampler.generate([TASK.prompt(each) for each in asked], params), strict=True):
        written = [pair for trace in episode.traces for pair in pairs_written(trace.text)]
        wanted = solving_pairs(puzzle)
        lines, inside, solving = lines + len(written), inside + len(wanted & set(written)), solving + len(wanted)
    return lines / puzzles, inside / solving


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--puzzles", type=int, default=100)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for text in options.models:
        mode, model, heat = text.split("=")
        lines, share = covered(mode, model, float(heat), options.puzzles)
        print(f"{model}: {mode} at {heat}: {lines:.1f} lines a puzzle, {share:.1%} of the solutions' pairs")


if __name__ == "__main__":
    main()
