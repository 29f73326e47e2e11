"""`asyncthink run`: questions as messages, what is said about the model, and what is shown without an answer."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from asyncthink.cli.app import app
from asyncthink.cli.options import loading
from asyncthink.cli.run import question_from
from asyncthink.engine.sampler import ForkJoinSampler
from asyncthink.episode.records import Episode, Event, Trace
from asyncthink.model.files import load_tokenizer
from asyncthink.protocol.prompts import DEFAULT_INSTRUCTIONS
from asyncthink.view.report import print_answer, print_texts
from untrained import save_untrained

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 from 1 1"}]


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_untrained(tmp_path_factory.mktemp("untrained"))


def run(*args: object, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, ["run", *(str(arg) for arg in args)], input=stdin)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What reaches the sampler; the episode is then another question's."""
    questions: list[Any] = []
    generate = ForkJoinSampler.generate

    def noted(self: ForkJoinSampler, given: list[Any], params: Any) -> list[Episode]:
        questions.extend(given)
        return generate(self, ["2 from 1 1"], params)

    monkeypatch.setattr(ForkJoinSampler, "generate", noted)
    return questions


def test_a_system_prompt_makes_messages(untrained: Path, asked: list[Any]) -> None:
    base = ("--model", untrained, "--json", "--max-tokens", 2)
    assert run(*base, "2 from 1 1", "--system", "Be brief.").exit_code == 0
    assert run(*base, "2 from 1 1").exit_code == 0
    assert asked == [CHAT, "2 from 1 1"]


def test_messages_from_a_file_and_from_stdin(untrained: Path, asked: list[Any], tmp_path: Path) -> None:
    base = ("--model", untrained, "--json", "--max-tokens", 2)
    (tmp_path / "chat.json").write_text(json.dumps(CHAT))
    assert run(*base, "--messages", tmp_path / "chat.json").exit_code == 0
    assert run(*base, "--messages", "-", stdin=json.dumps(CHAT)).exit_code == 0
    assert asked == [CHAT, CHAT]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "messages: expected JSON in"),
        ("{}", "messages: expected a list of {role, content} in"),
        ("[]", "messages: expected a list of {role, content} in"),
        ('[{"role": "user"}]', "messages[0]: expected {role, content}, got"),
        ('["hello"]', "messages[0]: expected {role, content}, got 'hello'"),
    ],
)
def test_files_of_something_else_are_named(content: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "chat.json").write_text(content)
    result = run("--model", "nowhere", "--messages", tmp_path / "chat.json")
    assert (result.exit_code, len(result.stderr.splitlines())) == (1, 1)
    assert result.stderr.startswith(f"asyncthink: {reason}")


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (("Q", None, "x.json"), "messages: expected no question"),
        ((None, "S", "x.json"), "messages: expected no question"),
        ((None, "S", None), "system: expected a question"),
    ],
)
def test_questions_that_exclude_each_other(given: tuple[str | None, ...], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        question_from(*given)


def test_nothing_is_asked_before_a_model_is_loaded() -> None:
    result = run("--model", "./nowhere")
    assert result.stderr == "asyncthink: question: expected a text, or --messages FILE, got neither\n"


def test_everything_that_was_written_is_shown() -> None:
    traces = [
        Trace(0, "organizer", sampled=[True], text="Paris is\x1b[2J the capital.<JOIN-1>", finish="error"),
        Trace(1, "worker", parent=0, fork_index=1, text="I looked.\nTwice.", finish="return"),
        Trace(2, "reply", text="  ", finish="end"),
    ]
    fork = Event("fork", 0, 3, 0.1, 1, 1, "look it\nup in a book")
    episode = Episode("Q", "asyncthink", traces=traces, events=[fork], finish="end", format_errors=["organizer: none"])
    for width, subquery in ((100, "look it up in a book"), (36, "look it\N{HORIZONTAL ELLIPSIS}")):
        console = Console(file=io.StringIO(), width=width)
        print_texts(console, episode)
        print_answer(console, episode)
        assert console.file.getvalue().splitlines() == [  # type: ignore[attr-defined]
            "organizer  1 token, error", "Paris is\N{MIDDLE DOT}[2J the capital.<JOIN-1>", "",
            f"worker 1  0 tokens, return  {subquery}", "I looked.", "Twice.", "",
            "agent 3  0 tokens, end", "nothing", "",
            "no answer (end)", "format error: organizer: none",
        ]  # fmt: skip


def test_texts_are_wrapped_on_a_terminal_alone() -> None:
    episode = Episode("Q", "parallel", traces=[Trace(0, "reply", text="one two three")], answer="one two three")
    for terminal, lines in ((True, 2), (False, 1)):
        console = Console(file=io.StringIO(), width=10, force_terminal=terminal, color_system=None)
        print_texts(console, episode)
        assert len(console.file.getvalue().splitlines()) == 2 + lines  # type: ignore[attr-defined]


def test_run_prints_the_whole_reply(untrained: Path) -> None:
    base = ("--model", untrained, "2 from 1 1", "--max-tokens", 5, "--mode", "sequential")
    printed = run(*base).stdout
    assert "no answer (budget)" in printed
    told = json.loads(run(*base, "--json").stdout)
    text = told["traces"][0]["text"].strip() or "nothing"
    assert f"agent 1  5 tokens, budget\n{text}\n" in printed


def test_replies_of_models_that_were_not_trained_in_the_protocol_are_their_answers(tmp_path: Path) -> None:
    folder = save_untrained(tmp_path, prompts=None)
    base = ("--model", folder, "2 from 1 1", "--max-tokens", 5, "--json")
    for options, role in (
        (("--mode", "sequential"), "reply"),
        (("--mode", "parallel", "--pool", 2), "reply"),
        (("--mode", "sequential", "--answer", "tags", "--guide", "off"), "solo"),
        (("--guide", "off"), "organizer"),
    ):
        told = json.loads(run(*base, *options).stdout)
        assert told["traces"][0]["role"] == role
        assert (told["answer"] == told["traces"][0]["text"].strip()) == (role == "reply")
        assert bool(told["format_errors"]) == (role != "reply")
    refused = run(*base, "--answer", "text")
    assert (refused.exit_code, refused.stderr.count("\n")) == (1, 1)
    assert "expected 'tags' with mode='asyncthink'" in refused.stderr


def test_a_system_prompt_is_a_turn_of_the_models_own_chat(tmp_path: Path) -> None:
    chat = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}<|assistant|>"
    folder = save_untrained(tmp_path, prompts=None, chat_template=chat)
    base = ("--model", folder, "2 from 1 1", "--max-tokens", 2, "--guide", "off")
    shown = run(*base, "--system", "Be brief.")
    assert shown.exit_code == 0, shown.output
    assert "begins: 2 from 1 1" in shown.stdout
    prompts = []
    for extra in (["--system", "Be"], []):
        trace = json.loads(run(*base, *extra, "--json").stdout)["traces"][0]
        prompts.append([token for token, drawn in zip(trace["tokens"], trace["sampled"], strict=True) if not drawn])
    instructions, tok = DEFAULT_INSTRUCTIONS["organizer"], load_tokenizer(folder)
    for prompt, system in zip(prompts, (f"{instructions}\n\nBe", instructions), strict=True):
        text = f"<|system|>{system}<|end|><|user|>2 from 1 1<|end|><|assistant|>"
        assert prompt == tok(text, add_special_tokens=False)["input_ids"]


def test_quantized_weights(untrained: Path) -> None:
    base = ("--model", untrained, "--device", "cpu", "--json", "--max-tokens", 2, "Q")
    done = run(*base, "--weights", "int8", "--explain")
    assert json.loads(done.stdout)["meta"]["explain"]["weights"].startswith("int8: 15 linear layers in 8 bits")
    refused = run(*base, "--weights", "int3")
    assert refused.exit_code != 0 and "weights: expected int8 or int4, got 'int3'" in refused.output


def test_explain(untrained: Path) -> None:
    alone = run("--model", untrained, "--explain", "--device", "cpu", "--dtype", "float32")
    assert alone.exit_code == 0, alone.output
    lines = {line.split()[0]: line.split(maxsplit=1)[1] for line in alone.stdout.splitlines()}
    assert lines["device"] == "cpu: as asked for"
    assert lines["dtype"] == "float32, as asked for"
    assert lines["prompts"] == "asyncthink.json"
    told = run("--model", untrained, "--explain", "--json", "--device", "cpu", "--dtype", "float32")
    assert {name: json.loads(told.stdout)[name] for name in lines} == lines
    asked = run("--model", untrained, "--explain", "--json", "Q", "--max-tokens", 1, "--device", "cpu")
    assert json.loads(asked.stdout)["meta"]["explain"]["device"] == "cpu: as asked for"


def test_a_terminal_sees_the_stages_in_a_spinner(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(
        "asyncthink.cli.options.Console", lambda **given: Console(file=shown, force_terminal=True, **given)
    )
    with loading(quiet=False) as progress:
        progress("checking the model")
    assert "asyncthink:" not in shown.getvalue()
    shown.truncate(0)
    with loading(quiet=True) as progress:
        progress("checking the model")
    assert "checking" not in shown.getvalue()


def test_a_model_without_a_protocol_of_its_own_is_led_through_a_plan(tmp_path: Path, untrained: Path) -> None:
    folder = save_untrained(tmp_path, prompts=None, chat_template="{% for m in messages %}{{ m.content }}{% endfor %}")
    base = ("--model", folder, "2 from 1 1", "--max-tokens", 12, "--json")
    planned = json.loads(run(*base, "--forks", 2).stdout)
    assert (planned["finish"], planned["format_errors"], len(planned["traces"])) == ("answer", [], 3)
    free = json.loads(run("--model", untrained, "2 from 1 1", "--max-tokens", 12, "--json").stdout)
    assert not free["traces"][0]["forced"]
    refused = run(*base, "--guide", "legal", "--forks", 2)
    assert refused.exit_code == 1
    assert "forks: expected None without the guide 'plan'" in refused.output
