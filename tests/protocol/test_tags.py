"""The tag grammar: what acts, what is text, every format error, and that token boundaries do not matter."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncthink.protocol import tags
from asyncthink.protocol.parser import Parser
from asyncthink.protocol.prompts import DEFAULT_PROMPTS, PromptFormat, worker_template
from asyncthink.protocol.tags import Answer, Fork, FormatError, Join, Return, join_insert, render

FRAGMENTS = [f"<{close}{name}>" for close in ("", "/") for name in ("FORK-1", "FORK-2", "JOIN-1", "JOIN-2")]
FRAGMENTS += [
    "<ANSWER>",
    "</ANSWER>",
    "<RETURN>",
    "</RETURN>",
    "<FORK-0>",
    "<FORK-01>",
    "<FORK-1",
    "<",
    "</",
    ">",
    "<b>",
    " x ",
    "é\n",
]
ROLES = ("organizer", "worker", "solo")
plain = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(lambda text: "<" not in text)
tagged = st.lists(st.sampled_from(FRAGMENTS), max_size=12).map("".join)


def read(role: str, *pieces: str, close: bool = False) -> list[tags.Action]:
    parser = Parser(role)
    actions = [action for piece in pieces for action in parser.feed(piece)]
    return actions + parser.close() if close else actions


def spans(actions: list[tags.Action]) -> list[tuple[int, int, int, int]]:
    """Offsets without the overrun, the only part that may depend on where the pieces were cut."""
    spans = [action.span for action in actions if not isinstance(action, FormatError)]
    return [(span.start, span.begin, span.end, span.stop) for span in spans]


def cut(text: str, places: list[int]) -> list[str]:
    edges = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[a:b] for a, b in pairwise(edges)]


def test_an_organizer_forks_joins_and_answers() -> None:
    parser = Parser("organizer")
    assert parser.feed("first <FORK-1>7 + 5</FORK-1> then <FORK-12>{x}</FORK-12>") == [
        Fork(1, "7 + 5"),
        Fork(12, "{x}"),
    ]
    assert parser.feed("<JOIN-12>") == [Join(12)]
    parser.insert(join_insert(12, "<JOIN-1> <ANSWER>no</ANSWER>"))
    assert parser.feed("so <ANSWER>12 < 13</ANSWER>") == [Answer("12 < 13")]
    assert parser.done and parser.close() == [] and parser.feed("<JOIN-1>") == []
    assert parser.text.count("<JOIN-1>") == 2  # text is kept whatever it did


def test_a_worker_returns() -> None:
    assert read("worker", "try <b>3 * 4</b> <RETURN>3 * 4 = 12</RETURN>", close=True) == [Return("3 * 4 = 12")]


def test_spans_and_overrun_are_exact() -> None:
    parser = Parser("organizer")
    (fork,) = parser.feed("ab<FORK-1>sub</FORK-1>. ")
    assert isinstance(fork, Fork)
    assert (fork.span.start, fork.span.begin, fork.span.end, fork.span.stop, fork.span.overrun) == (2, 10, 13, 22, ". ")
    (join,) = [action for piece in ("<JO", "IN-1", "> go") for action in parser.feed(piece)]
    assert (
        isinstance(join, Join)
        and join.span.overrun == " go"
        and parser.text[join.span.start : join.span.stop] == "<JOIN-1>"
    )
    parser.insert(join_insert(1, "é"))
    (answer,) = [action for piece in ("<ANSWER", ">4", "2</", "ANSWER>", "!") for action in parser.feed(piece)]
    assert isinstance(answer, Answer) and answer.span.overrun == ""
    assert parser.text[answer.span.begin : answer.span.end] == answer.text == "42"


def test_one_piece_may_complete_two_actions() -> None:
    first, second = read("organizer", "<FORK-1>a</FORK-1><JOIN-1>x")
    assert isinstance(first, Fork) and isinstance(second, Join)
    assert (first.span.overrun, second.span.overrun) == ("<JOIN-1>x", "x")


@pytest.mark.parametrize(
    ("role", "text", "reason"),
    [
        ("organizer", "<FORK-1>a</FORK-1><FORK-1>", tags.DUPLICATE_FORK),
        ("organizer", "<JOIN-1>", tags.UNKNOWN_JOIN),
        ("organizer", "<FORK-1>a</FORK-1><JOIN-2>", tags.UNKNOWN_JOIN),
        ("organizer", "<FORK-1>a</FORK-1><JOIN-1>b <JOIN-1>", tags.REPEATED_JOIN),
        ("organizer", "<FORK-1>a<FORK-2>", tags.NESTED_TAG),
        ("organizer", "<FORK-1>a<JOIN-1>", tags.NESTED_TAG),
        ("organizer", "<ANSWER>a<ANSWER>", tags.NESTED_TAG),
        ("worker", "<RETURN>a<RETURN>", tags.NESTED_TAG),
        ("worker", "<FORK-1>", tags.NESTED_TAG),
        ("worker", "<JOIN-1>", tags.NESTED_TAG),
        ("solo", "<ANSWER>a<ANSWER>", tags.NESTED_TAG),
        ("organizer", "<FORK-1>a</FORK-2>", tags.MISMATCHED_CLOSE),
        ("organizer", "<FORK-1>a</ANSWER>", tags.MISMATCHED_CLOSE),
        ("organizer", "a</FORK-1>", tags.MISMATCHED_CLOSE),
        ("organizer", "<FORK-1>a</FORK-1><JOIN-1>b</JOIN-1>", tags.MISMATCHED_CLOSE),
        ("worker", "a</RETURN>", tags.MISMATCHED_CLOSE),
        ("organizer", "<FORK-1>a", tags.UNCLOSED_TAG),
        ("organizer", "<ANSWER>a</ANSWER", tags.UNCLOSED_TAG),
        ("worker", "<RETURN>a", tags.UNCLOSED_TAG),
        ("organizer", "no <ANSW", tags.NO_ANSWER),
        ("organizer", "<FORK-1>a</FORK-1><RETURN>b</RETURN>", tags.NO_ANSWER),
        ("solo", "<FORK-1>a</FORK-1><JOIN-9>", tags.NO_ANSWER),
        ("worker", "<ANSWER>a</ANSWER>", tags.NO_RETURN),
    ],
)
def test_format_errors(role: str, text: str, reason: str) -> None:
    actions = read(
        role, text, " <ANSWER>late</ANSWER><RETURN>late</RETURN>" if reason not in CLOSING else "", close=True
    )
    errors = [action for action in actions if isinstance(action, FormatError)]
    assert [error.reason for error in errors] == [reason] and actions[-1] is errors[0]


CLOSING = (tags.UNCLOSED_TAG, tags.NO_ANSWER, tags.NO_RETURN)


def test_the_core_reports_its_own_format_errors() -> None:
    for reason in (tags.POOL_OVERFLOW, tags.BUDGET_EXCEEDED):
        parser = Parser("organizer")
        assert str(parser.fail(reason, "<FORK-4>")) == f"{reason}: <FORK-4>"
        assert parser.done and parser.close() == []
    with pytest.raises(ValueError, match="expected one of duplicate"):
        Parser("solo").fail("bad luck")


@pytest.mark.parametrize(
    "text",
    ["<FORK-0>", "<FORK-01>", "<FORK-1000>", "<FORK->", "<FORK-1 >", "<fork-1>", "< FORK-1>", "<b>", "<ANSWER-1>"],
)
def test_what_is_not_a_tag_is_text(text: str) -> None:
    assert read("organizer", f"<ANSWER>{text}</ANSWER>") == [Answer(text)]


@pytest.mark.parametrize(
    "text", ["<<ANSWER>x</ANSWER>", "<FORK-<ANSWER>x</ANSWER>", "</<ANSWER>x</ANSWER>", "<FORK-1<ANSWER>x</ANSWER>"]
)
def test_a_broken_tag_does_not_hide_the_next(text: str) -> None:
    assert read("organizer", text) == [Answer("x")]


def test_inserted_text_does_not_complete_a_tag() -> None:
    parser = Parser("organizer")
    assert parser.feed("<FORK-1>a</FORK-1><ANSWER") == [Fork(1, "a")]
    parser.insert(">")
    assert parser.feed("x</ANSW") == []
    parser.insert("ER>")
    assert parser.close() == [FormatError(tags.NO_ANSWER)]


def test_unknown_role() -> None:
    with pytest.raises(ValueError, match="role: expected one of organizer, worker, solo, reply, got 'boss'"):
        Parser("boss")


@given(st.sampled_from(ROLES), tagged, st.lists(st.integers(0, 10**6), max_size=30))
def test_any_cut_gives_the_same_actions(role: str, text: str, places: list[int]) -> None:
    whole, pieces = read(role, text, close=True), read(role, *cut(text, places), close=True)
    single = read(role, *text, close=True)
    assert whole == pieces == single
    assert spans(whole) == spans(pieces) == spans(single)


@given(st.sampled_from(ROLES), tagged, tagged)
def test_inserted_text_never_acts(role: str, inserted: str, drawn: str) -> None:
    parser = Parser(role)
    parser.insert(inserted)
    assert parser.feed(drawn) + parser.close() == read(role, drawn, close=True)
    assert parser.text == inserted + drawn


@given(
    st.lists(st.tuples(plain, plain, st.booleans()), max_size=6), plain, st.lists(st.integers(0, 10**6), max_size=20)
)
def test_rendered_actions_are_read_back(forks: list[tuple[str, str, bool]], answer: str, places: list[int]) -> None:
    said: list[tags.Action] = []
    text = ""
    for index, (before, subquery, join) in enumerate(forks, start=1):
        said += [Fork(index, subquery), Join(index)] if join else [Fork(index, subquery)]
        text += before + "".join(render(action) for action in said[-1 - join :])
    said.append(Answer(answer))
    assert read("organizer", *cut(text + render(said[-1]), places), close=True) == said


@given(tagged, st.lists(st.integers(0, 10**6), max_size=20))
def test_spans_point_at_the_inner_text(text: str, places: list[int]) -> None:
    for action in read("organizer", *cut(text, places)):
        if isinstance(action, Fork | Answer):
            inner = action.subquery if isinstance(action, Fork) else action.text
            assert text[action.span.begin : action.span.end] == inner
            name = f"FORK-{action.index}" if isinstance(action, Fork) else "ANSWER"
            # Not by render(): a worker's tag is text to an organizer, and render() writes no tag inside for anybody.
            assert text[action.span.start : action.span.stop] == f"<{name}>{inner}</{name}>"


def test_render_refuses_what_cannot_be_read_back() -> None:
    with pytest.raises(ValueError, match="text of <FORK-1>: expected no protocol tag inside, got '<JOIN-2>'"):
        render(Fork(1, "a <JOIN-2>"))
    with pytest.raises(ValueError, match="index: expected 1 to 999, got 0"):
        render(Join(0))
    assert render(Return("x <b>")) == "<RETURN>x <b></RETURN>"


def test_a_worker_that_may_fork_reads_as_an_organizer_that_returns() -> None:
    text = "<FORK-1>a</FORK-1>x<JOIN-1><ANSWER>no</ANSWER><RETURN>r</RETURN>"
    parser = Parser("worker", may_fork=True)
    assert parser.may_fork and parser.feed(text) == [Fork(1, "a"), Join(1), Return("r")]
    assert Parser("worker", may_fork=True).close() == [FormatError(tags.NO_RETURN)]
    assert read("worker", text) == [FormatError(tags.NESTED_TAG, "<FORK-1>")]
    assert Parser("organizer").may_fork
    assert not Parser("solo", may_fork=True).may_fork
    assert Parser("solo", may_fork=True).feed("<FORK-1>a</FORK-1>") == []


def test_prompts_are_filled_literally() -> None:
    prompts = PromptFormat("O {question} {other}", "W {subquery} of {question}", "I {subquery}", "S {question}")
    assert prompts.fill("organizer", question="{subquery} \\1 {}") == "O {subquery} \\1 {} {other}"
    assert prompts.fill("worker_shared", question="{subquery}", subquery="{question}") == "W {question} of {subquery}"


def test_prompts_are_kept_beside_a_checkpoint(tmp_path) -> None:
    (tmp_path / "asyncthink.json").write_text('{"sampling": {"temperature": 0.5}}')
    DEFAULT_PROMPTS.save(tmp_path)
    assert PromptFormat.load(tmp_path) == DEFAULT_PROMPTS
    assert json.loads((tmp_path / "asyncthink.json").read_text())["sampling"] == {"temperature": 0.5}
    assert [path.name for path in tmp_path.iterdir()] == ["asyncthink.json"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "expected a file with prompt templates, got none"),
        ("{", "expected JSON"),
        ("[]", "expected a JSON object, got list"),
        ("{}", 'expected a "prompts" entry'),
        ('{"prompts": {"solo": "x"}}', "expected strings named organizer, solo, worker_isolated, worker_shared"),
        (
            '{"prompts": {"organizer": "x", "solo": "", "worker_shared": "", "worker_isolated": ""}}',
            "prompt 'organizer': expected {question} in it",
        ),
    ],
)
def test_bad_prompt_files(tmp_path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "asyncthink.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        PromptFormat.load(tmp_path)


def test_default_prompts_name_every_tag() -> None:
    prompts = DEFAULT_PROMPTS
    assert all(tag in prompts.organizer for tag in ("<FORK-1>", "</FORK-1>", "<JOIN-1>", "<ANSWER>", "</ANSWER>"))
    assert "<RETURN>" in prompts.worker_shared and "<RETURN>" in prompts.worker_isolated and "<ANSWER>" in prompts.solo


def test_formats_without_templates_for_forking_workers_load(tmp_path) -> None:
    four = {name: getattr(DEFAULT_PROMPTS, name) for name in ("organizer", "worker_shared", "worker_isolated", "solo")}
    old = PromptFormat(**four)
    old.save(tmp_path)
    assert json.loads((tmp_path / "asyncthink.json").read_text())["prompts"] == four
    assert PromptFormat.load(tmp_path) == old
    for used in (old.parts, old.prefix):
        with pytest.raises(ValueError, match="expected a template 'forking_worker_isolated' for workers that may fork"):
            used("forking_worker_isolated")
    with pytest.raises(ValueError, match=r"prompt 'forking_worker_isolated': expected \{subquery\} in it"):
        PromptFormat(**four, forking_worker_isolated="x")


def test_default_prompts_of_forking_workers_name_their_tags() -> None:
    for context in ("shared", "isolated"):
        text = DEFAULT_PROMPTS.fill(worker_template(context, may_fork=True), subquery="a task")
        assert all(tag in text for tag in ("<FORK-1>", "</FORK-1>", "<JOIN-1>", "<RETURN>", "</RETURN>", "a task"))
        assert "Do not fork" not in text and "ANSWER" not in text


def test_protocol_and_records_need_no_torch() -> None:
    code = "import sys, asyncthink, asyncthink.episode.records; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
