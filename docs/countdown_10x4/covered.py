"""``covered.py MODE=MODEL=TEMPERATURE ... [--puzzles N]``: what agents search, and how far each solution comes.

Each solution is found from one pair (:mod:`asyncthink.tasks.search`): an agent searches the pair, writes the solution
into that line, and it comes into the answer. For every model: the lines of the search that its agents write a puzzle,
those of a number that the puzzle has not, those that differ from what a search without a mistake would write, and the
share of the solutions that come through each of the three. On validation puzzles, at most 460 tokens an agent.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

import torch

from asyncthink import ForkJoinSampler, SamplingParams
from asyncthink.tasks import task
from asyncthink.tasks.expressions import parse
from asyncthink.tasks.grading import final_answer
from asyncthink.tasks.held_out import held_out
from asyncthink.tasks.search import search_pair

TASK: Any = task("countdown-10x4")
_LINE = re.compile(r"^(\d+)\+(\d+)=.*(?=\n)", re.MULTILINE)
_LABELLED = re.compile(r" [a-i]:([^,\n]*)")
Pair = tuple[int, int]


def lines_written(texts: Iterable[str]) -> dict[Pair, list[str]]:
    """The lines that were ended in these texts, by their pair.

    >>> lines_written(["3+15=18+15,15-3=12\\n3+17=20,17", "3+15=18\\n"])
    {(3, 15): ['3+15=18+15,15-3=12', '3+15=18']}
    """
    lines: dict[Pair, list[str]] = defaultdict(list)
    for text in texts:
        for match in _LINE.finditer(text):
            lines[int(match[1]), int(match[2])].append(match[0])
    return dict(lines)


def expected(puzzle: Any, pair: Pair) -> tuple[str, list[str]]:
    """The line of a pair without labels, and the solutions found in it; nothing for what is no pair of the puzzle."""
    a, b = pair
    if not (a < b and {a, b} <= set(puzzle.numbers)):
        return "", []
    findings = [*search_pair(puzzle.numbers, puzzle.target, a, b, TASK.largest)]
    return "".join(each.text for each in findings).strip(), [each.solution for each in findings if each.solution]


def is_right(line: str, wanted: str) -> bool:
    """Whether a line is as wanted; one agent alone may end the search with a solution.

    >>> is_right("3+15=18+15 a:3+15+15", "3+15=18+15,15-3=12"), is_right("3+15=18+15", "3+15=18+15,15-3=12")
    (True, False)
    """
    found = list(_LABELLED.finditer(line))
    written = _LABELLED.sub("", line)
    ends_it = bool(found) and found[-1].end() == len(line)
    return bool(wanted) and (written == wanted or (ends_it and wanted.startswith(written)))


def followed(puzzle: Any, episode: Any) -> Counter[str]:
    """Counts: lines, those of a foreign number, wrong ones, solutions, those searched, written and answered."""
    lines, counts = lines_written(trace.text for trace in episode.traces), Counter[str]()
    for pair, written in lines.items():
        wanted = expected(puzzle, pair)[0]
        counts["lines"] += len(written)
        counts["foreign" if not wanted else "wrong"] += sum(not is_right(line, wanted) for line in written)
    answered = {parse(text).key for text in TASK.correct(puzzle, final_answer(TASK, puzzle, episode) or "")}
    for pair in ((a, b) for place, a in enumerate(puzzle.numbers) for b in puzzle.numbers[place + 1 :]):
        for solution in expected(puzzle, pair)[1]:
            found = {text for line in lines.get(pair, []) for text in _LABELLED.findall(line)}
            counts["solutions"] += 1
            counts["searched"] += pair in lines
            counts["written"] += solution in found
            counts["answered"] += parse(solution).key in answered
    return counts


def covered(mode: str, model: str, temperature: float, puzzles: int) -> Counter[str]:
    """The counts of :func:`followed` over validation puzzles."""
    asked = held_out(TASK, puzzles, 2_000_000, "validation")
    sampler = ForkJoinSampler(model, mode=mode, pool=4)
    params = SamplingParams(temperature=temperature, max_tokens=460, seed=0)
    episodes = sampler.generate([TASK.prompt(each) for each in asked], params)
    return sum((followed(puzzle, episode) for puzzle, episode in zip(asked, episodes, strict=True)), Counter())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--puzzles", type=int, default=200)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for text in options.models:
        mode, model, heat = text.split("=")
        made = covered(mode, model, float(heat), options.puzzles)
        foreign, wrong = (made[name] / max(1, made["lines"]) for name in ("foreign", "wrong"))
        print(f"{model}: {mode} at {heat}: {made['lines'] / options.puzzles:.1f} lines a puzzle")
        print(f"  of these, with a number that the puzzle has not: {foreign:.1%}; with a mistake: {wrong:.2%}")
        shares = (f"{name} {made[name] / made['solutions']:.1%}" for name in ("searched", "written", "answered"))
        print(f"  of {made['solutions']} solutions: {', '.join(shares)}")


if __name__ == "__main__":
    main()
