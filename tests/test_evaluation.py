"""Grading: what a sampler solved, on scripted agents whose answers are known."""

import pytest

from asyncthink import SamplingParams
from asyncthink.evaluation import evaluate
from asyncthink.tasks import Countdown
from asyncthink.tasks.search import find_all
from scripted import sampler

GREEDY = SamplingParams(temperature=0.0, max_tokens=200)


def test_counts_different_correct_solutions():
    task, scripts, done = Countdown(), [], []
    for seed in range(4):
        puzzle = task.sample(seed, held_out=True)
        right = find_all(puzzle.numbers, puzzle.target)
        answer = ", ".join([*right[:seed], *right[:1], "1+1"][:4])  # a repeat and a wrong one do not count
        scripts.append(f"S:{task.prompt(puzzle)}\n<ANSWER>{answer}</ANSWER>")
    s = sampler(scripts, num_pages=2000, max_rows=512, mode="sequential")
    figures = evaluate(s, task, range(4), GREEDY, progress=done.append)
    assert figures["at_least"] == {1: 1.0, 2: 0.5, 3: 0.25, 4: 0.0}
    assert (figures["puzzles"], figures["mode"], figures["episodes_with_format_errors"]) == (4, "sequential", 0.0)
    assert figures["critical_path_tokens"] == figures["total_tokens"]
    assert done == [1, 2, 3, 4]


def test_refuses_no_puzzles():
    with pytest.raises(ValueError, match="seeds: expected at least one puzzle"):
        evaluate(sampler([]), Countdown(), [], GREEDY)
