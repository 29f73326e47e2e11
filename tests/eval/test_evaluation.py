"""Evaluation: what a sampler solved and how, on scripted agents whose answers and paths are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from asyncthink import ForkJoinSampler, SamplingParams, checkpoint_path
from asyncthink.cli.app import app
from asyncthink.cli.evaluate import models_by_mode
from asyncthink.eval.bootstrap import Bootstrap
from asyncthink.eval.evaluation import compare, evaluate, fingerprint, measure_seconds, with_seconds
from asyncthink.tasks import Countdown, Puzzle
from asyncthink.tasks.countdown import is_held_out
from asyncthink.tasks.held_out import held_out
from asyncthink.tasks.search import find_all
from scripted import sampler

TASK = Countdown()
GREEDY = SamplingParams(temperature=0.0, max_tokens=200)
PUZZLES = held_out(TASK, 4)


def answers(puzzles: list[Puzzle], opening: str = "S") -> list[str]:
    """Of puzzle k the first k solutions, one of them again, and a wrong one."""
    scripts = []
    for k, puzzle in enumerate(puzzles):
        right = find_all(puzzle.numbers, puzzle.target)
        listed = ", ".join([*right[:k], *right[:1], "1+1"][:4])
        scripts.append(f"{opening}:{TASK.prompt(puzzle)}\n<ANSWER>{listed}</ANSWER>")
    return scripts


def scripted(scripts: list[str], **options: Any) -> ForkJoinSampler:
    return sampler(scripts, num_pages=2000, max_rows=512, **options)


def test_counts_different_correct_solutions() -> None:
    done: list[int] = []
    s = scripted(answers(PUZZLES), mode="sequential")
    row = evaluate(s, TASK, PUZZLES, GREEDY, progress=done.append)
    assert {n: share["value"] for n, share in row["at_least"].items()} == {"1": 1.0, "2": 0.5, "3": 0.25, "4": 0.0}
    assert row["accuracy"]["value"] == pytest.approx((1 + 1 + 2 + 3) / 16)
    assert (row["name"], row["format_errors"]["value"], row["errors"]) == ("sequential", 0.0, {})
    assert row["critical_path_tokens"] == row["total_tokens"]
    assert (row["eta_agents"]["value"], row["eta_workers"]["value"]) == (0.25, 0.0)
    assert done == [1, 2, 3, 4]
    assert row["per_puzzle"]["accuracy"] == [0.25, 0.25, 0.5, 0.75]
    share = row["at_least"]["2"]
    expected = Bootstrap(4).mean([0.0, 0.0, 1.0, 1.0])
    assert (share["low"], share["high"]) == (expected.low, expected.high)
    json.dumps(row)


def test_workers_count_towards_eta_and_broken_episodes_towards_errors() -> None:
    (puzzle, other), right = PUZZLES[:2], find_all(PUZZLES[0].numbers, PUZZLES[0].target)
    begin = f"O:{TASK.prompt(puzzle)}\n<FORK-1>go</FORK-1>"
    s = scripted([
        begin + f"<JOIN-1>{right[0]}</JOIN-1><ANSWER>{right[0]}</ANSWER>",
        begin + f"W:12345<RETURN>{right[0]}</RETURN>",
        f"O:{TASK.prompt(other)}\n<JOIN-2>",
    ])  # fmt: skip
    row = evaluate(s, TASK, [puzzle, other], GREEDY)
    fork, worker = len("<FORK-1>go</FORK-1>"), len(f"12345<RETURN>{right[0]}</RETURN>")
    rest = len(f"<ANSWER>{right[0]}</ANSWER>")
    path, joining = fork + worker + rest, len("<JOIN-1>")
    assert row["per_puzzle"]["critical_path_tokens"] == [path, len("<JOIN-2>")]
    etas = ((path + joining) / (4 * path) + 1 / 4) / 2, worker / (3 * path) / 2
    assert (row["eta_agents"]["value"], row["eta_workers"]["value"]) == tuple(map(pytest.approx, etas))
    assert row["name"] == "asyncthink shared exact"
    assert (row["forks"]["value"], row["joins"]["value"], row["format_errors"]["value"]) == (0.5, 0.5, 0.5)
    assert row["errors"] == {"join of an index never forked": 1}
    assert row["over_budget"]["value"] == 0


def test_parallel_answers_are_united_and_an_exhausted_budget_is_seen() -> None:
    s = scripted([*answers(PUZZLES[2:3]), f"S:{TASK.prompt(PUZZLES[3])}\n" + 300 * "x"], mode="parallel", pool=3)
    params = SamplingParams(temperature=1.0, max_tokens=60)
    row = evaluate(s, TASK, PUZZLES[2:], params, draws=2)
    assert (row["name"], row["aggregate"]) == ("parallel union", "union")
    assert row["per_puzzle"]["accuracy"] == [0.25, 0.0], "all traces say the same"
    assert (row["over_budget"]["value"], row["format_errors"]["value"]) == (0.5, 0.5)
    assert row["errors"] == {"budget exceeded": 2 * 3}
    assert row["per_puzzle"]["eta_agents"] == [1.0, 1.0]


def test_refuses_what_cannot_be_evaluated() -> None:
    s = sampler([], mode="sequential")
    with pytest.raises(ValueError, match="puzzles: expected at least one, got 0"):
        evaluate(s, TASK, [], GREEDY)
    with pytest.raises(ValueError, match="draws: expected 1 at temperature 0, at least 1 above, got 2"):
        evaluate(s, TASK, PUZZLES, GREEDY, draws=2)
    with pytest.raises(ValueError, match="puzzles: expected at least one, got 0"):
        held_out(TASK, 0)


class Narrow(Countdown):
    """A task with three held-out puzzles."""

    def sample(self, seed: int, held_out: bool = False) -> Puzzle:
        return super().sample(seed % 3, held_out)


def test_held_out_puzzles_are_different_and_never_trained_on() -> None:
    puzzles = held_out(TASK, 150)
    assert len({TASK.prompt(puzzle) for puzzle in puzzles}) == 150
    assert all(map(is_held_out, puzzles))
    assert held_out(TASK, 1, first=5)[0] == TASK.sample(5, held_out=True)
    assert fingerprint(TASK, puzzles[:2]) != fingerprint(TASK, puzzles[1::-1])
    assert len(held_out(Narrow(), 3)) == 3
    with pytest.raises(ValueError, match="puzzles: expected at most 3, all that countdown holds out, got 4"):
        held_out(Narrow(), 4)


def test_seconds_are_taken_in_turn_and_compared_in_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    fast, slow = (scripted(answers(PUZZLES), mode="sequential") for _ in range(2))
    row = evaluate(fast, TASK, PUZZLES, GREEDY)
    for name, each in (("fast", fast), ("slow", slow)):
        spy = lambda *args, name=name, generate=each.generate: (order.append(name), generate(*args))[1]  # noqa: E731
        monkeypatch.setattr(each, "generate", spy)
    seconds = measure_seconds({"fast": fast, "slow": slow}, TASK, PUZZLES[:3], GREEDY)
    assert order == ["fast", "slow", "fast", "slow", "slow", "fast", "fast", "slow"]
    assert [len(each) for each in seconds.values()] == [3, 3]
    assert min(map(min, seconds.values())) > 0
    timed = with_seconds(row, [0.2, 0.1, 0.4]), with_seconds(row, [0.4, 0.2, 0.8])
    assert (timed[0]["seconds"]["value"], timed[0]["seconds"]["each"]) == (0.2, [0.2, 0.1, 0.4])
    found = compare(*timed)
    assert (found["seconds"]["low"], found["seconds"]["high"]) == (pytest.approx(0.5), pytest.approx(0.5))
    assert "seconds" not in compare(row, timed[1])


def test_comparisons_are_of_the_same_puzzles() -> None:
    better = evaluate(scripted(answers(PUZZLES), mode="sequential"), TASK, PUZZLES, GREEDY)
    worse = evaluate(scripted(answers(PUZZLES), mode="sequential"), TASK, PUZZLES, GREEDY)
    worse["per_puzzle"]["accuracy"] = [value - 0.25 for value in worse["per_puzzle"]["accuracy"]]
    found = compare(better, worse)
    assert (found["accuracy"]["low"], found["accuracy"]["high"]) == (0.25, 0.25)
    assert found["critical_path_tokens"]["value"] == 1
    with pytest.raises(ValueError, match="column: expected 4 values"):
        compare(better, evaluate(scripted(answers(PUZZLES[:3]), mode="sequential"), TASK, PUZZLES[:3], GREEDY))


def test_models_by_mode() -> None:
    modes = ["sequential", "parallel", "asyncthink", "asyncthink"]
    assert models_by_mode([], modes[:2]) == dict.fromkeys(modes[:2], str(checkpoint_path()))
    assert models_by_mode(["odd=name", "parallel=p"], modes) == {
        "sequential": "odd=name", "parallel": "p", "asyncthink": "odd=name",
    }  # fmt: skip
    with pytest.raises(ValueError, match="model: expected sequential=PATH or a PATH for all modes, got parallel=p"):
        models_by_mode(["parallel=p"], modes)
    with pytest.raises(ValueError, match="model: expected one for parallel, got 'parallel=q' too"):
        models_by_mode(["parallel=p", "parallel=q"], modes)
    with pytest.raises(ValueError, match="model: expected one for all modes, got 'b' too"):
        models_by_mode(["a", "b"], modes)
    with pytest.raises(ValueError, match=r"expected one of the modes evaluated \(sequential\), got 'parallel=p'"):
        models_by_mode(["parallel=p"], ["sequential"])


def invoke(*words: str) -> Any:
    return CliRunner().invoke(app, ["eval", *words])


def test_the_command_prints_a_row_for_each_setting(tmp_path: Path) -> None:
    command = [
        "--puzzles",
        "2",
        "--max-tokens",
        "8",
        "--mode",
        "sequential,parallel,asyncthink",
        "--join",
        "exact,link",
    ]
    result = invoke(*command, "--latency", "1", "--model", f"sequential={checkpoint_path()}", "--model",
                    str(checkpoint_path()), "--json")  # fmt: skip
    report = json.loads(result.stdout)
    rows = report["rows"]
    assert [row["name"] for row in rows] == [
        "sequential", "parallel union", "asyncthink shared exact", "asyncthink shared link",
    ]  # fmt: skip
    assert all(row["at_least"]["1"]["value"] == 0 and row["format_errors"]["value"] == 1 for row in rows)
    assert all(row["critical_path_tokens"]["value"] == 8 and len(row["seconds"]["each"]) == 1 for row in rows)
    assert {(row["model"], row["parameters"]) for row in rows} == {("checkpoints/countdown", 858240)}
    assert report["questions_sha256"] == fingerprint(TASK, held_out(TASK, 2))
    assert (report["budget"], report["timed_puzzles"], len(report["comparisons"])) == (8, 1, 4 * 3 // 2)
    result = invoke(*command, "--latency", "0")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0].startswith("2 held-out countdown puzzles, pool 4, at most 8 tokens an agent; CPU")
    assert len(lines) == 2 + 4 + 6
    assert lines[-1] == (
        "asyncthink shared link - asyncthink shared exact: all 4 +0.0 [0.0, 0.0] points; "
        "critical path x1.000 [1.000, 1.000]"
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--mode", "sideways"], "mode: expected one of"),
        (["--join", "link,exact,link"], "join: expected each value once, got 'link,exact,link'"),
        (["--task", "chess"], "task: expected one of"),
        (["--aggregate", "mean"], "aggregate: expected one of vote, union, got 'mean'"),
        (["--draws", "2"], "draws: expected 1 at temperature 0"),
        (["--model", "parallel=x"], "model: expected one of the modes evaluated (asyncthink), got 'parallel=x'"),
        (["--model", "/nowhere"], "/nowhere"),
    ],
)
def test_the_command_refuses(words: list[str], told: str) -> None:
    result = invoke(*words, "--puzzles", "1")
    assert result.exit_code == 1
    (line,) = result.stderr.strip().splitlines()[-1:]
    assert line.startswith("asyncthink: ") and told in line
