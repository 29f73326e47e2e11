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
from asyncthink.episode.records import Episode, Trace
from asyncthink.model.files import load_tokenizer
from asyncthink.view.report import print_answer
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


def test_what_was_written_is_shown_without_an_answer() -> None:
    traces = [
        Trace(0, "organizer", text="Paris is\x1b[2J the capital.<JOIN-1>"),
        Trace(1, "worker", parent=0, fork_index=1, text="I looked."),
        Trace(2, "solo", text="  "),
    ]
    console = Console(file=io.StringIO(), width=20)
    print_answer(console, Episode("Q", "asyncthink", traces=traces, finish="end"), texts=True)
    assert console.file.getvalue().splitlines() == [  # type: ignore[attr-defined]
        "no answer (end)",
        "organizer  Paris is\N{MIDDLE DOT}[2J the capital.<JOIN-1>",
        "worker 1  I looked.",
        "agent 3  nothing",
    ]


def test_run_prints_the_whole_reply(untrained: Path) -> None:
    base = ("--model", untrained, "2 from 1 1", "--max-tokens", 5, "--mode", "sequential")
    printed = run(*base).stdout
    assert "no answer (budget)" in printed
    (line,) = [line for line in printed.splitlines() if line.startswith("agent 1  ")]
    told = json.loads(
        run("--model", untrained, "2 from 1 1", "--max-tokens", 5, "--mode", "sequential", "--json").stdout
    )
    assert line == f"agent 1  {told['traces'][0]['text'].strip() or 'nothing'}"


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
    with_system, without = prompts
    head = load_tokenizer(folder)("<|system|>Be<|end|>", add_special_tokens=False)["input_ids"]
    assert with_system[: len(head)] == head
    assert with_system[len(head) :] == without


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
