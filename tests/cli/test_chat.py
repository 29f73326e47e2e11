"""`asyncthink chat`: turns become messages, commands, what is stopped, and what a pipe and a terminal get."""

from __future__ import annotations

import io
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from asyncthink.cli.app import app
from asyncthink.cli.chat import Chat
from asyncthink.engine.loaded import LoadedModel
from asyncthink.engine.sampler import SamplingParams
from asyncthink.episode.records import Episode
from asyncthink.protocol.messages import Question, turns
from asyncthink.protocol.prompts import Part, PromptFormat
from scripted import END, PROMPTS, ScriptedDecoder, tokenizer

ORGANIZED = "O:u How?\n<FORK-1>count</FORK-1> I think"
RESULT = f"{ORGANIZED}<JOIN-1>four</JOIN-1><ANSWER>4</ANSWER>{END}"
WORKER = "O:u How?\n<FORK-1>count</FORK-1>W:one two<RETURN>four</RETURN>"
SECOND = f"O:u How?a 4u Why?\n<ANSWER>because</ANSWER>{END}"
WITHOUT = f"O:u Why?\n<ANSWER>anew</ANSWER>{END}"
BRIEF = f"O:s Be brief.u How?\n<ANSWER>four</ANSWER>{END}"
ALONE = f"S:u How?\n<ANSWER>alone</ANSWER>{END}"
WRONG = "O:u What?\n<RETURN>x"
SCRIPTS = (RESULT, WORKER, SECOND, WITHOUT, BRIEF, ALONE, WRONG)


class Turns(PromptFormat):
    """Templates that hold a conversation: each message after the first letter of its role."""

    __slots__ = ()

    def parts(self, name: str, *, question: Question = "", subquery: str = "") -> list[Part]:
        said = "".join(f"{role[0]} {content}" for role, content in turns(question)) if question else ""
        return PromptFormat.parts(self, name, question=said, subquery=subquery)


def loaded() -> LoadedModel:
    tok, p = tokenizer(), PROMPTS
    prompts = Turns(p.organizer, p.worker_shared, p.worker_isolated, p.solo)
    return LoadedModel("scripted", ScriptedDecoder(tok, SCRIPTS, 1024), tok, prompts)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> LoadedModel:
    served = loaded()
    monkeypatch.setattr(LoadedModel, "load", lambda _, **options: served)
    return served


def chat(typed: str, *options: object) -> Result:
    arguments = ["chat", "--model", "scripted", *(str(option) for option in options)]
    return CliRunner().invoke(app, arguments, input=typed)


def on_terminal(served: LoadedModel, **agents: Any) -> tuple[Chat, Callable[[], str]]:
    console = Console(file=io.StringIO(), force_terminal=True, width=80, height=24, color_system=None)
    options = {"mode": "asyncthink", "pool": 4, "context": "shared", "join": "exact"} | agents
    session = Chat(served, options, SamplingParams(temperature=0.0), console)
    return session, console.file.getvalue  # type: ignore[attr-defined]


def test_a_pipe_gets_the_answers(model: LoadedModel) -> None:
    result = chat("How?\n\nWhy?\n")
    assert (result.exit_code, result.stdout) == (0, "4\nbecause\n")


def test_new_forgets_and_quit_ends(model: LoadedModel) -> None:
    result = chat("How?\n/new\nWhy?\n/quit\nHow?\n")
    assert result.stdout == "4\nanew\n"
    assert "a new conversation" in result.stderr


def test_a_system_prompt_begins_every_conversation(model: LoadedModel) -> None:
    assert chat("How?\n/new\nHow?\n", "--system", "Be brief.").stdout == "four\nfour\n"


def test_mode_and_pool_change_and_are_told(model: LoadedModel) -> None:
    result = chat("/mode sequential\nHow?\n/mode\n/pool 1\n/pool\n/mode choir\n/pool x\n/pool 0\n/mode\n")
    assert result.stdout == "alone\n"
    assert result.stderr.splitlines() == [
        "mode: sequential",
        "mode: sequential",
        "pool: 1",
        "pool: 1",
        "mode: expected one of asyncthink, sequential, parallel, got 'choir'",
        "pool: expected a number of agents, got 'x'",
        "pool: expected at least 1 (the organizer), got 0",
        "mode: sequential",
    ]


def test_one_agent_without_prompts_of_its_own_replies_in_plain_text(monkeypatch: pytest.MonkeyPatch) -> None:
    tok = tokenizer()
    served = LoadedModel("plain", ScriptedDecoder(tok, [f"How?So <ANSWER> so.{END}"], 256), tok, PROMPTS, False)
    monkeypatch.setattr(LoadedModel, "load", lambda _, **options: served)
    result = chat("How?\n", "--mode", "sequential")
    assert (result.stdout, result.exit_code) == ("So <ANSWER> so.\n", 0)


def test_save_writes_the_last_episode(model: LoadedModel, tmp_path: Path) -> None:
    result = chat(f"/save\nHow?\n/save {tmp_path / 'e.json'}\n/save {tmp_path}\n")
    assert Episode.load(tmp_path / "e.json").answer == "4"
    assert json.loads((tmp_path / "e.json").read_text())["meta"]["model"] == "scripted"
    first, saved, refused = result.stderr.splitlines()
    assert first == "save: expected an episode, got none yet"
    assert saved == f"saved: {tmp_path / 'e.json'}"
    assert "got a folder" in refused


def test_help_and_unknown_commands(model: LoadedModel) -> None:
    result = chat("/help\n/halp\n")
    assert "/save [FILE]" in result.stderr
    assert result.stderr.splitlines()[-1].startswith("/halp: expected a command of /help")
    assert result.stdout == ""


def test_what_has_no_answer_is_left_out(model: LoadedModel) -> None:
    result = chat("What?\nHow?\n")
    assert result.stdout == "4\n"
    assert result.stderr.splitlines()[0] == "no answer (end)"
    assert result.stderr.splitlines()[1].startswith("error: organizer: ")


def test_templates_without_conversations_take_every_question_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    tok = tokenizer()
    plain = [script.replace("O:u ", "O:") for script in (RESULT, WORKER)]
    served = LoadedModel("plain", ScriptedDecoder(tok, plain, 1024), tok, PROMPTS)
    monkeypatch.setattr(LoadedModel, "load", lambda _, **options: served)
    assert chat("How?\nHow?\n").stdout == "4\n4\n"
    refused = chat("How?\n", "--system", "Be brief.")
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert refused.stderr.startswith("asyncthink: system: expected none for this model")


def test_bad_options_are_refused_before_a_model_is_loaded() -> None:
    result = chat("", "--pool", 0)
    assert result.stderr == "asyncthink: pool: expected at least 1 (the organizer), got 0\n"


def test_a_terminal_sees_lanes_that_fold_away() -> None:
    session, shown = on_terminal(loaded())
    session.greet("scripted")
    assert session.take("How?")
    screen = shown()
    assert "worker 1  done · " in screen, "a lane of one line"
    assert "╭─ organizer " in screen
    end = screen[screen.rindex("╯") :]
    assert "2 agents, " in end
    assert end.rstrip().endswith("\n4")
    assert max(len(line) for line in screen.splitlines() if "\x1b" not in line) <= 80
    assert session.messages == [{"role": "user", "content": "How?"}, {"role": "assistant", "content": "4"}]


def test_ctrl_c_stops_the_answer_alone() -> None:
    served = loaded()
    session, shown = on_terminal(served)
    decoder: Any = served.decoder
    before = signal.getsignal(signal.SIGINT)
    decoder.on_forward = lambda call: os.kill(os.getpid(), signal.SIGINT) if call == 12 else None
    assert session.take("How?")
    assert shown().rstrip().endswith("stopped")
    assert (session.messages, session.sampler.scheduler.running) == ([], [])
    assert signal.getsignal(signal.SIGINT) is before
    decoder.on_forward = None
    assert session.take("How?")
    assert shown().rstrip().endswith("\n4")
