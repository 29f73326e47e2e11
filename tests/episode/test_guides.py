"""Guides in the episode core alone: characters as tokens, scripts in the place of a model."""

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_engine import ScriptedEngine

from asyncthink.episode.options import Options
from asyncthink.episode.params import SamplingParams
from asyncthink.episode.records import Episode


def run(scripts, guide="plan", params=None, pause=None, order=(), **options) -> ScriptedEngine:
    given_ = {"max_length": options.pop("max_length")} if "max_length" in options else {}
    engine = ScriptedEngine(scripts, Options(guide=guide, **options), params or SamplingParams(max_tokens=60), **given_)
    engine.run(order, pause=pause)
    return engine


def episode(*args, **kwargs) -> Episode:
    return run(*args, **kwargs).core.episode


def test_a_plan_writes_the_tags_and_the_model_the_rest():
    got = episode(["first\nsecond\nso\n42", "one", "two"])
    assert got.traces[0].text == (
        "<FORK-1>first\n</FORK-1>\n<FORK-2>second\n</FORK-2>so\n"
        "\n<JOIN-1>one</JOIN-1>\n<JOIN-2>two</JOIN-2>\n<ANSWER>42"
    )
    assert [trace.text for trace in got.traces[1:]] == ["<RETURN>one", "<RETURN>two"]
    assert (got.answer, got.format_errors, got.joins) == ("42", [], 2)
    organizer = got.traces[0]
    assert [organizer.tokens[k] for k in organizer.forced[:8]] == [ord(c) for c in "<FORK-1>"]
    assert not any(organizer.sampled[k] or organizer.logprobs[k] for k in organizer.forced)
    assert got.critical_path_tokens <= got.total_tokens == sum(map(sum, (trace.sampled for trace in got.traces)))


def test_as_many_forks_as_the_model_writes_and_no_more_than_the_pool():
    three = episode(["a\nb\n<FORK-3>c\nso\n42", "1", "2", "3"])
    assert (three.forks, three.joins, three.answer) == (3, 3, "42")
    one = episode(["a\nso\n42", "1"], forks=1)
    assert (one.forks, one.joins, one.answer) == (1, 1, "42")
    none = episode(["so\n42"], pool=1)
    assert (none.forks, none.answer) == (0, "42")


def test_a_sub_query_differs_from_the_earlier_ones_by_its_last_word():
    engine = run(["the capital of France\nthe capital of"])
    core = engine.core
    asked = ScriptedEngine(["the capital of France\nthe capital of"], core.options, SamplingParams(max_tokens=400))
    asked.carry_out(asked.core.start())
    while asked.left.get(0) != []:
        asked.core.rule(0)
        asked.carry_out(asked.core.accept(0, asked._next(0), -1.0))
    assert asked.core.rule(0).unlike == (" France",)


def test_budgets_lead_to_an_answer_with_inserted_tags():
    for guide in ("legal", "plan"):
        for tokens in range(3, 30):
            got = episode(["x" * 99] * 4, guide, SamplingParams(max_tokens=tokens))
            assert got.finish == "answer", (guide, tokens)
            assert not got.format_errors
            assert all(trace.decoded <= tokens for trace in got.traces)
    open_fork = episode(["<FORK-1>" + "x" * 99], "legal", SamplingParams(max_tokens=20))
    assert open_fork.traces[0].text == "<FORK-1>xxxxxxx</FORK-1><ANSWER>xxxxx</ANSWER>"


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.text("ab\n <>/", max_size=40), min_size=1, max_size=4),
    st.sampled_from(["legal", "plan"]),
    st.integers(3, 50),
    st.sampled_from([None, 9, 30, 100]),
    st.sampled_from([None, 70, 90, 140]),
    st.sampled_from(["exact", "append", "link"]),
    st.lists(st.integers(0, 1), max_size=5).filter(lambda order: not order or any(order)),
    st.none() | st.integers(1, 20),
)
def test_harmless_scripts_never_fail_whatever_the_budgets(
    scripts, guide, tokens, episode_tokens, positions, join, order, pause
):
    params = SamplingParams(max_tokens=tokens, max_episode_tokens=episode_tokens)
    try:
        engine = run(scripts, guide, params, pause, order, join=join, max_length=positions)
    except ValueError as error:
        assert "positions must hold an answer" in str(error)  # noqa: PT017
        return
    core = engine.core
    assert core.episode.format_errors == []
    assert episode_tokens is None or core.episode.total_tokens <= episode_tokens
    for speaker in core.speakers:
        assert speaker.trace.decoded <= tokens
        fitted = speaker.trace.finish == "length" or speaker.trace.finish == "cancelled"
        assert positions is None or fitted or speaker.length <= positions


def test_a_stop_string_ends_the_agent_and_is_no_error():
    params = SamplingParams(max_tokens=60, stop=("END",))
    inside = episode(["a\nb\nso\n42 END more"], params=params)
    assert (inside.answer, inside.format_errors) == ("42 END", [])
    before = episode(["a END"], "legal", params)
    assert (before.answer, before.finish, before.format_errors) == (None, "stop", [])
    worker = episode(["a\nb\nso\n42", "x END", "y"], params=params)
    assert (worker.traces[1].returned, worker.answer) == ("x END", "42")


@pytest.mark.parametrize(
    ("guide", "params", "message"),
    [
        ("plan", {"max_tokens": 2}, "max_tokens: expected at least 3 under the guide 'plan', got 2"),
        ("plan", {"max_tokens": 9, "max_episode_tokens": 2}, "max_episode_tokens: expected at least 3"),
    ],
)
def test_budgets_that_cannot_lead_to_an_answer_are_refused(guide, params, message):
    with pytest.raises(ValueError, match=message):
        run([""], guide, SamplingParams(**params))


def test_a_prompt_that_leaves_no_position_is_refused():
    with pytest.raises(ValueError, match=r"prompt: expected at most .* positions must hold an answer .*, got 3"):
        run([""], "legal", max_length=30)


def test_records_keep_what_was_forced_and_the_rules_and_old_ones_load():
    got = episode(["first\nsecond\nso\n42", "one", "two"])
    again = Episode.from_dict(json.loads(json.dumps(got.to_dict())))
    assert again == got
    assert again.traces[0].forced
    assert again.traces[0].rules
    old = got.to_dict()
    for trace in old["traces"]:
        del trace["forced"], trace["rules"]
    assert Episode.from_dict(old).traces[0].forced == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guide": "on"}, "guide: expected one of off, legal, plan, got 'on'"),
        ({"forks": 2}, "forks: expected None without the guide 'plan'"),
        ({"guide": "plan", "forks": 4}, r"forks: expected 1 to 3 \(the workers of pool 4\), got 4"),
        ({"guide": "plan", "mode": "sequential", "forks": 1}, "forks: expected None"),
    ],
)
def test_refused_options(options, message):
    with pytest.raises(ValueError, match=message):
        Options(**options)
    assert dataclasses.asdict(Options())["guide"] == "off"
