"""answer="text": the whole reply is the answer, and tags in it are text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_engine import ScriptedEngine

from asyncthink.episode.modes import opening
from asyncthink.episode.options import Options
from asyncthink.episode.params import SamplingParams
from asyncthink.episode.records import Episode
from asyncthink.view.timeline import timeline


def run(*scripts: str, mode: str = "sequential", params: SamplingParams | None = None, **given: object) -> Episode:
    options = Options(mode, pool=len(scripts), answer="text")
    engine = ScriptedEngine(scripts, options, params or SamplingParams(max_tokens=40), **given)
    engine.run([])
    assert engine.released == set(range(len(scripts)))
    return engine.core.episode


@given(st.lists(st.sampled_from(["<ANSWER>", "</ANSWER>", "<FORK-1>", "<RETURN>", "a", "\n"]), max_size=4).map("".join))
def test_everything_up_to_the_end_of_text_is_the_answer(reply):
    episode = run(reply)
    (trace,) = episode.traces
    assert (episode.answer, trace.returned, trace.text) == (reply, reply, reply)
    assert (episode.finish, trace.finish, trace.role, episode.format_errors) == ("end", "end", "reply", [])
    assert {segment.kind for segment in timeline(episode).lanes[0].segments} == {"prompt", "think"}


@pytest.mark.parametrize(
    ("params", "given", "answer", "finish"),
    [
        (SamplingParams(max_tokens=5), {}, "one, ", "budget"),
        (SamplingParams(max_episode_tokens=4), {}, "one,", "budget"),
        (SamplingParams(stop=("two", "o,")), {}, "one, ", "stop"),
        (SamplingParams(stop=("x",), max_tokens=9), {}, "one, two,", "budget"),
        (SamplingParams(), {"max_length": 6}, "one", "length"),
    ],
)
def test_limits_and_stop_strings_are_ordinary_ends(params, given, answer, finish):
    episode = run("one, two, three", params=params, **given)
    assert (episode.answer, episode.finish, episode.format_errors) == (answer, finish, [])
    assert episode.traces[0].text.startswith(answer)


def test_parallel_replies_vote_over_whole_texts():
    episode = run("four", "4", " 4\n", mode="parallel")
    assert (episode.answer, episode.finish) == ("4", "answer")
    assert [trace.finish for trace in episode.traces] == ["end"] * 3


def test_a_budget_of_the_episode_keeps_what_every_agent_has_said():
    episode = run("abcdef", "ab", mode="parallel", params=SamplingParams(max_episode_tokens=5))
    assert [trace.returned for trace in episode.traces] == ["abc", "ab"]
    assert [trace.finish for trace in episode.traces] == ["budget", "budget"]
    assert (episode.answer, episode.format_errors) == ("abc", [])


def test_an_organizer_needs_tags():
    with pytest.raises(ValueError, match=r"answer: expected 'tags' with mode='asyncthink' .*, got 'text'"):
        Options(answer="text")
    with pytest.raises(ValueError, match="answer: expected one of tags, text, got 'xml'"):
        Options("parallel", answer="xml")
    assert [opening(Options(mode)) for mode in ("asyncthink", "sequential", "parallel")] == [
        "organizer",
        "solo",
        "solo",
    ]
