"""Grading: what a sampler solved, on scripted agents whose answers are known."""

import json

import pytest
from typer.testing import CliRunner

from asyncthink import SamplingParams
from asyncthink.cli import app
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


def test_the_command_prints_a_row_for_each_setting():
    command = ["eval", "--puzzles", "2", "--max-tokens", "8", "--mode", "sequential,asyncthink", "--join", "exact,link"]
    result = CliRunner().invoke(app, [*command, "--json"])
    rows = json.loads(result.stdout)
    assert [(row["mode"], row.get("join")) for row in rows] == [
        ("sequential", None), ("asyncthink", "exact"), ("asyncthink", "link"),
    ]  # fmt: skip
    assert all(row["at_least"]["1"] == 0 and row["episodes_with_format_errors"] == 1 for row in rows)
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == 5
    result = CliRunner().invoke(app, ["eval", "--mode", "sideways"])
    assert result.exit_code == 1
    assert "mode: expected one of" in result.stderr
