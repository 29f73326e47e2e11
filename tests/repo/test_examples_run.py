"""The programs of examples/ run as they stand, on a CPU, in seconds, and do what they say."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

from asyncthink import Tool
from asyncthink.protocol.chat import prompts_for
from asyncthink.tasks import TASKS
from scripted import END, ScriptedDecoder
from tool_templates import HERMES, chatting

EXAMPLES = sorted((Path(__file__).resolve().parents[2] / "examples").glob("*.py"))


def run(name: str) -> Any:
    (path,) = [path for path in EXAMPLES if path.stem == name]
    return runpy.run_path(str(path))["main"]()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_and_takes_no_arguments(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 60
    assert "argparse" not in text
    assert "sys.argv" not in text


def test_every_example_is_run_here() -> None:
    assert [path.stem for path in EXAMPLES] == [
        *("best_of_n", "generate", "map_reduce", "new_task", "self_consistency", "skeleton_of_thought"),
        *("stream", "tools", "train_loop", "train_with_trl", "tree_of_thoughts"),
    ]


def test_generate(capsys: pytest.CaptureFixture[str]) -> None:
    task, episodes = TASKS["countdown"], run("generate")
    shown = capsys.readouterr().out
    puzzles = {task.prompt(puzzle): puzzle for puzzle in (task.sample(seed, True) for seed in range(2))}
    assert [episode.question for episode in episodes] == list(puzzles)
    for episode in episodes:
        assert task.verify(puzzles[episode.question], episode.answer) == 1
        assert f"{episode.question}: {episode.answer}" in shown


def test_stream_shows_everything_that_was_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    episode = run("stream")
    shown = capsys.readouterr().out
    assert episode.finish == "answer"
    assert all(f"[{kind}]" in shown for kind in ("start", "fork", "join", "return", "answer"))
    lines = [line for trace in episode.traces if trace.role == "worker" for line in trace.text.split("\n")[:-1]]
    assert lines
    assert all(line in shown for line in lines)


def test_tools(capsys: pytest.CaptureFixture[str]) -> None:
    """With a model that follows a script, in place of the one that the program downloads."""
    (path,) = [path for path in EXAMPLES if path.stem == "tools"]
    program = runpy.run_path(str(path))
    tools = [Tool(program["calculator"]), Tool(program["search"])]
    tok = chatting(HERMES, *(json.dumps(tool.schema) for tool in tools))
    prompts = prompts_for(tok).with_tools([tool.schema for tool in tools])  # type: ignore[attr-defined]

    def used(name: str, result: str, **arguments: str) -> str:
        call = json.dumps({"name": name, "arguments": arguments})
        return f"<tool_call>{call}</tool_call>{END}[user]<told>{result}</told>{END}[assistant]"

    head = prompts.fill("organizer", question=program["QUESTION"]) + "<FORK-1>the north cellar</FORK-1>"
    found = "The north cellar holds 17 casks of 225 litres each."
    worker = prompts.fill("worker_shared", subquery="the north cellar") + used("search", found, word="NORTH")
    worker += used("calculator", "3825", expression="17 * 225") + "<RETURN>3825</RETURN>"
    rest = used("calculator", "8325", expression="3825 + 9 * 500") + "<JOIN-1>3825</JOIN-1><ANSWER>8325</ANSWER>"
    episode = program["main"](ScriptedDecoder(tok, [head + rest, head + worker], 2048), tok)
    assert episode.answer == "8325"
    shown = capsys.readouterr().out
    assert "agent 1: search(" in shown
    assert shown.endswith("answer: 8325\n")
    assert program["search"]("cat") == "no line has it"
    for expression in ("__import__('os')", "2 ** 9", "f(1)", "'a' * 3", "-x"):
        with pytest.raises(ValueError, match="expected numbers"):
            program["calculator"](expression)


def test_train_loop_learns_from_what_was_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    log = run("train_loop")
    assert len(log) == 2
    for figures in log:
        assert figures["off_policy"] < 1e-4  # trainer and sampler agree on every token, after an update too
    assert "step 1" in capsys.readouterr().out


def test_train_with_trl_reports_every_step(tmp_path: Path) -> None:
    pytest.importorskip("trl", reason="the extra trl is not installed")
    (path,) = [path for path in EXAMPLES if path.stem == "train_with_trl"]
    log = runpy.run_path(str(path))["main"](steps=1, out=tmp_path)
    assert [line["step"] for line in log] == [1]
    assert log[0]["ratio"] == pytest.approx(1, abs=1e-3)  # trained on what was drawn
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["accuracy"] == log[0]["accuracy"]
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_new_task(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(TASKS, "sums", None)  # restored afterwards
    organized = run("new_task")
    task = TASKS["sums"]
    puzzle = task.sample(0)
    assert task.prompt(puzzle) == organized.question
    for demonstration in (organized, task.demonstrate(puzzle, 0, "sequential")):
        answer = demonstration.scripts[0].text.rpartition("<ANSWER>")[2].removesuffix("</ANSWER>")
        assert task.verify(puzzle, answer) == 1
    assert task.verify(puzzle, None) == 0
    assert "organizer: <FORK-1>" in capsys.readouterr().out


def test_self_consistency_counts_every_chain(capsys: pytest.CaptureFixture[str]) -> None:
    votes = run("self_consistency")
    assert sum(votes.values()) == 8 and len(votes) > 1
    winner = max(votes, key=lambda answer: votes[answer])
    assert f"answer: {winner}, {votes[winner]} of 8 chains" in capsys.readouterr().out


def test_skeleton_of_thought_joins_every_point(capsys: pytest.CaptureFixture[str]) -> None:
    text = run("skeleton_of_thought")
    for number in (1, 2, 3):
        assert re.search(rf"^{number}\. [0-9 +*-]{{3,12}}$", text, re.MULTILINE)
        assert text.count(f"Point {number} in detail: ") == 1
    assert text.index("Point 3") < text.index("Together: ")
    assert text in capsys.readouterr().out


def test_best_of_n_takes_the_best(capsys: pytest.CaptureFixture[str]) -> None:
    best, values = run("best_of_n")
    shown = capsys.readouterr().out
    assert len(values) == 6 and len(set(values)) > 1
    assert f"{max(values):+.3f}  {best[:60]!r}" in shown and f"best: {best!r}" in shown


def test_tree_of_thoughts_releases_what_it_prunes(capsys: pytest.CaptureFixture[str]) -> None:
    whole, pages = run("tree_of_thoughts")
    assert pages[-1] == 0 and 0 < pages[0] < 8
    assert whole in capsys.readouterr().out


def test_map_reduce_answers_from_the_notes(capsys: pytest.CaptureFixture[str]) -> None:
    notes, answer = run("map_reduce")
    assert len(notes) == 6
    assert all(re.fullmatch("[1-9][0-9]?[.]", text) for text in (*notes, answer))
    assert f"answer: {answer}" in capsys.readouterr().out
