"""The command line: what it prints and writes, and that everything that can go wrong ends in one clear line."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from rich.console import Console
from transformers import XLMConfig, XLMWithLMHeadModel
from typer.testing import CliRunner, Result

import asyncthink
from asyncthink import ForkJoinSampler
from asyncthink.cli import demo as demo_module
from asyncthink.cli.app import SHOWN, app
from asyncthink.engine.loaded import LoadedModel
from asyncthink.episode.records import Episode, Event, TokenEvent
from asyncthink.tasks import Countdown
from asyncthink.train.tokenizer import build_tokenizer
from asyncthink.view.terminal import LiveLanes, PlainLines, watcher
from scripted import PROMPTS, ScriptedDecoder
from untrained import save_untrained

COMMAND = [sys.executable, "-m", "asyncthink.cli.app"]
PROMISED = {
    "solved": bool, "forks": int, "joins": int, "format_errors": list, "critical_path_tokens": int,
    "total_tokens": int, "wall_seconds": float, "kv_bytes_shared": int, "kv_bytes_copied": int, "join_mode": str,
    "context": str,
}  # fmt: skip


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_untrained(tmp_path_factory.mktemp("untrained"))


def scripted(seed: int) -> LoadedModel:
    """A model that says, word by word, what a written demonstration of the demo's puzzle says."""
    task, tokenizer = Countdown(), build_tokenizer()
    puzzle = task.sample(seed, held_out=True)
    organizer, *workers = task.demonstrate(puzzle, seed).scripts
    (solo,) = task.demonstrate(puzzle, seed, "sequential").scripts
    begin = PROMPTS.fill("organizer", question=task.prompt(puzzle))
    scripts = [begin + organizer.text, PROMPTS.fill("solo", question=task.prompt(puzzle)) + solo.text]
    for worker in workers:
        before = "".join(piece.text for piece in organizer.pieces[: worker.fork_at])
        scripts.append(begin + before + PROMPTS.fill("worker_shared", subquery=worker.subquery) + worker.text)
    return LoadedModel("box", ScriptedDecoder(tokenizer, scripts), tokenizer, PROMPTS)


def call(*args: object) -> Result:
    return CliRunner().invoke(app, [str(arg) for arg in args])


def is_one_line(result: Result, code: int, *expected: str) -> bool:
    *stages, line = result.stderr.splitlines()
    assert all(stage.startswith("asyncthink: ") for stage in stages)
    return result.exit_code == code and line.startswith("asyncthink: ") and all(part in line for part in expected)


@pytest.mark.parametrize("task", SHOWN)
def test_the_models_in_the_box_solve_the_demo_puzzle(tmp_path: Path, task: str) -> None:
    saved = tmp_path / "episode.json"
    result = call("demo", "--task", task, "--json", "--out", tmp_path / "timeline.html", "--save", saved)
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert {name: type(told[name]) for name in PROMISED} == PROMISED
    assert told["solved"], told
    assert told["format_errors"] == []
    assert told["forks"] >= 1
    assert told["joins"] >= 1
    assert told["kv_bytes_shared"] > told["kv_bytes_copied"]
    assert told["critical_path_tokens"] < told["sequential"]["critical_path_tokens"]
    episode = Episode.load(saved)
    assert episode.critical_path_tokens == told["critical_path_tokens"]
    assert told["question"] in (tmp_path / "timeline.html").read_text()


def test_the_demo_tells_what_happened(tmp_path: Path, monkeypatch) -> None:
    served, task = scripted(3), Countdown()
    monkeypatch.setattr(LoadedModel, "load", lambda _, **options: served)
    monkeypatch.setattr(demo_module, "_ROUNDS", 1)
    base = ("demo", "--model", "box", "--seed", 3, "--join", "append", "--out", tmp_path / "t.html")
    told = json.loads(call(*base, "--json").stdout)
    organizer, *workers = task.demonstrate(task.sample(3, held_out=True), 3).scripts
    assert told["solved"] is told["sequential"]["solved"] is True
    assert (told["right"], told["format_errors"], told["join_mode"]) == (4, [], "append")
    assert (told["forks"], told["joins"]) == (len(workers), organizer.text.count("<JOIN-"))
    assert task.verify(task.parse_prompt(told["question"]), told["answer"]) == 1.0
    assert told["concurrency"] == pytest.approx(told["total_tokens"] / told["critical_path_tokens"], abs=1e-3)
    assert told["kv_bytes_copied"] > 0

    printed = call(*base).stdout
    assert "4 of 4 different expressions are right: verified" in printed
    assert f"{told['critical_path_tokens']} tokens" in printed
    assert f"{told['kv_bytes_shared']:,} bytes not copied; copied: {told['kv_bytes_copied']:,} bytes" in printed
    assert printed.startswith(told["question"] + "  4 different expressions")
    assert printed.count(" forks worker") == len(workers)
    assert ">solved<" in (tmp_path / "t.html").read_text()


def test_the_demo_is_timed_alike_shown_or_quiet(tmp_path: Path, monkeypatch) -> None:
    """The same episodes in the same order, so that the same things are warm when the clock starts."""
    monkeypatch.setattr(demo_module, "MAX_TOKENS", 24)  # how far an episode comes does not matter here
    monkeypatch.setattr(demo_module, "_ROUNDS", 2)
    monkeypatch.setattr(demo_module, "_SECONDS", float("inf"))
    calls: list[tuple[str, str, int]] = []
    for name in ("stream", "generate"):
        plain = getattr(ForkJoinSampler, name)

        def noted(self, asked, params, plain=plain, name=name):
            calls.append((name, self.options.mode, params.max_tokens))
            return plain(self, asked, params)

        monkeypatch.setattr(ForkJoinSampler, name, noted)
    runs = []
    for options in ([], ["--json"]):
        served = scripted(3)
        monkeypatch.setattr(LoadedModel, "load", lambda _, served=served, **options: served)
        assert call("demo", "--seed", 3, "--out", tmp_path / "t.html", *options).exit_code == 0
        runs.append(calls[:])
        calls.clear()
    assert runs[0] == runs[1]
    assert runs[0][0] == ("stream", "asyncthink", demo_module.MAX_TOKENS)
    assert len(runs[0]) == 1 + 2 + 2 * 2


def test_a_quiet_watcher_keeps_no_pace() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, quiet=True)
    assert isinstance(watcher(console, 1.0), PlainLines)


def test_version() -> None:
    stated = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["version"]
    assert call("--version").stdout == f"asyncthink {stated}\n"
    assert asyncthink.__version__ == stated


def test_demo_prints_lines_where_there_is_no_terminal(untrained: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(demo_module, "MAX_TOKENS", 24)
    result = call("demo", "--model", untrained, "--out", tmp_path / "t.html", "--pool", 2, "--join", "append")
    assert result.exit_code == 0, result.output
    assert "organizer   begins:" in result.stdout
    assert "format error: organizer: budget exceeded: 24 tokens" in result.stdout
    assert "0 of 4 different expressions are right: not solved" in result.stdout
    assert "\x1b" not in result.output
    stages = result.stderr.splitlines()
    assert stages[:2] == [f"asyncthink: loading the weights of {untrained}", "asyncthink: checking the model"]
    assert "<!doctype html>" in (tmp_path / "t.html").read_text()


def test_run_saves_what_view_draws(untrained: Path, tmp_path: Path) -> None:
    saved, drawn = tmp_path / "episode.json", tmp_path / "drawn.html"
    result = call("run", "--model", untrained, "2 from 1 1", "--max-tokens", 8, "--json", "--save", saved)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == json.loads(saved.read_text())
    assert Episode.load(saved).total_tokens == 8
    assert call("view", saved, "--out", drawn, "--against", saved).exit_code == 0
    assert "2 from 1 1" in drawn.read_text()


def test_a_model_that_cannot_be_served(tmp_path: Path) -> None:
    XLMWithLMHeadModel(XLMConfig(vocab_size=600, emb_dim=32, n_layers=1, n_heads=2)).save_pretrained(tmp_path)
    build_tokenizer().save_pretrained(tmp_path)
    assert is_one_line(call("run", "--model", tmp_path, "hello"), 1, "xlm")


@pytest.mark.parametrize("command", [["demo"], ["run", "hello"]])
def test_no_such_model(command: list[str], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_one_line(call(*command, "--model", tmp_path / "nowhere"), 1, "nowhere")
    assert list(tmp_path.iterdir()) == []


def test_bad_options_are_named(untrained: Path, tmp_path: Path) -> None:
    base = ("demo", "--out", tmp_path / "t.html", "--model", untrained)
    assert is_one_line(call(*base, "--join", "glue"), 1, "join: expected one of exact, append, link, got 'glue'")
    assert is_one_line(call(*base, "--context", "none"), 1, "context: expected one of shared, isolated")
    assert is_one_line(call(*base, "--pool", 0), 1, "pool: expected at least 1")
    assert is_one_line(call("demo", "--task", "sudoku-4"), 1, "task: expected one of countdown, countdown-10x4, got")


def test_a_place_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    assert is_one_line(call("demo", "--model", "/nowhere", "--out", tmp_path), 1, "got a folder")
    assert is_one_line(call("demo", "--model", "/nowhere", "--out", tmp_path / "a" / "b"), 1, "existing folder")


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"question": "a", "mode": "asyncthink", "traces": [1]}'])
def test_view_of_something_else(content: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(content)
    result = call("view", tmp_path / "x.json", "--out", tmp_path / "t.html")
    assert is_one_line(result, 1, "x.json: expected an episode's JSON")
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_a_full_disk(tmp_path: Path) -> None:
    Episode("Q", "asyncthink").save(tmp_path / "x.json")
    assert is_one_line(call("view", tmp_path / "x.json", "--out", "/dev/full"), 1, "No space left on device")
    with open("/dev/full", "w") as full:
        command = [*COMMAND, "view", str(tmp_path / "x.json"), "--out", str(tmp_path / "t.html")]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (1, "asyncthink: No space left on device\n")


def test_a_file_is_whole_or_not_there(tmp_path: Path, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    Episode("Q", "asyncthink").save(tmp_path / "x.json")
    (tmp_path / "t.html").write_text("old")
    monkeypatch.setattr("os.replace", full)
    assert is_one_line(call("view", tmp_path / "x.json", "--out", tmp_path / "t.html"), 1, "No space left on device")
    assert (tmp_path / "t.html").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2


def test_ctrl_c(untrained: Path, tmp_path: Path) -> None:
    command = [*COMMAND, "demo", "--model", str(untrained), "--out", str(tmp_path / "t.html")]

    def heed_interrupts() -> None:  # a shell's background jobs, and all that they start, ignore them
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, preexec_fn=heed_interrupts)
    assert process.stdout is not None
    assert " from " in process.stdout.readline()  # the model is loaded, 1,024 tokens are still to come
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors.splitlines()[-1]) == (130, "asyncthink: interrupted")
    assert list(tmp_path.iterdir()) == []


def test_train_passes_its_arguments_on() -> None:
    listed = call("train", "--help")
    assert listed.exit_code == 0
    assert "sft" in listed.stdout
    assert call("train", "sft", "--nope").exit_code == 2
    assert is_one_line(call("train", "sft", "--out", "/dev/null/run", "--steps", -1), 1, "steps")


def test_usage_errors_are_short() -> None:
    result = call("demo", "--pol", 3)
    assert result.exit_code == 2
    assert "Traceback" not in result.output


EVENTS: list[Event | TokenEvent] = [
    Event("start", 0, 0, 0.0, text="Q"),
    TokenEvent(0, "<FORK-1>look\x1b[2J</FORK-1>", True, 1),
    Event("fork", 0, 1, 0.1, 1, 1, "look\x1b[2J"),
    TokenEvent(1, "seen", True, 2),
    Event("wait", 0, 2, 0.2, 1, 1),
    Event("return", 1, 3, 0.3, 1, 0, ""),
    Event("join", 0, 3, 0.3, 1, 1, ""),
    TokenEvent(0, "</JOIN-1>", False, 3),
    Event("error", 0, 4, 0.4, None, None, "nested tag"),
    Event("stop", 0, 4, 0.4, text="error"),
]


@pytest.mark.parametrize("width", [20, 70, 200])
def test_lanes_on_a_terminal(width: int) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=width, height=24, color_system=None)
    with watcher(console) as screen:
        assert isinstance(screen, LiveLanes)
        for event in EVENTS:
            screen.show(event)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    last = shown[shown.rindex("organizer") :]
    assert "worker 1" in last
    assert "seen" in last
    assert "\x1b[2J" not in shown


def test_lines_elsewhere() -> None:
    console = Console(file=io.StringIO(), width=20)
    with watcher(console) as screen:
        assert isinstance(screen, PlainLines)
        for event in EVENTS:
            screen.show(event)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines[1] == "    1  organizer   forks worker 1: look\N{MIDDLE DOT}[2J"
    assert lines[3] == "    3  worker 1    returns: nothing"
    assert len(lines) == 7


def test_lines_of_what_agents_write() -> None:
    console = Console(file=io.StringIO(), width=20)
    with watcher(console, texts=True, first="agent 1") as screen:
        for event in (
            TokenEvent(0, "one\n\ntw", True, 1), TokenEvent(0, "o\x1b", True, 2), TokenEvent(0, "told", False, 2),
            Event("call", 0, 3, 0.3, text='add({"a": 1})'), Event("tool", 0, 5, 0.5, text="4"),
            TokenEvent(1, "left", True, 6),
        ):  # fmt: skip
            screen.show(event)
    assert console.file.getvalue().splitlines() == [  # type: ignore[attr-defined]
        "    1  agent 1     | one",
        "    3  agent 1     | two\N{MIDDLE DOT}",
        '    3  agent 1     calls add({"a": 1})',
        "    5  agent 1     is told: 4",
        "    6  agent 2     | left",
    ]


def test_lanes_go_away_where_texts_are_printed_whole() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80, height=24, color_system=None)
    with watcher(console, texts=True, first="agent 1") as screen:
        screen.show(Event("call", 0, 3, 0.3, text="add({})"))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "agent 1" in shown and "waits for a tool" in shown
    assert "agent 1" not in shown[shown.rindex("\x1b[2K") :]
