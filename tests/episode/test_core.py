"""The state machine of an episode, driven by scripts: its wishes always build the contexts of its record."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_engine import END, ScriptedEngine, tokens

from asyncthink.episode.options import Context, JoinMode, Mode, Options
from asyncthink.episode.params import SamplingParams
from asyncthink.episode.records import Event
from asyncthink.episode.wishes import Begin, Feed, Fork, Release, Splice

TAGS = [f"<{close}{name}-{i}>" for i in (1, 2) for name in ("FORK", "JOIN") for close in ("", "/")]
TAGS += ["<ANSWER>", "</ANSWER>", "<RETURN>", "</RETURN>", "a", "b c", chr(END)]
ORGANIZERS = st.one_of(
    st.lists(st.sampled_from(TAGS), max_size=12).map("".join),
    st.permutations(["<JOIN-1>", "<JOIN-2>", "x", "yy"]).map(
        lambda rest: "<FORK-1>p</FORK-1>u<FORK-2>qq</FORK-2>" + "".join(rest) + "<ANSWER>z</ANSWER>"
    ),
)
WORKERS = st.one_of(
    st.lists(st.sampled_from(TAGS), max_size=5).map("".join),
    st.text("abc", max_size=6).map(lambda text: f"hm<RETURN>{text}</RETURN>"),
)
PARAMS = SamplingParams(max_tokens=90)


def engine(scripts, mode="asyncthink", context="shared", join="exact", pool=3, params=PARAMS, **given):
    return ScriptedEngine(scripts, Options(mode, pool, context, join), params, **given)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(WORKERS, max_size=3), ORGANIZERS, st.sampled_from(Mode), st.sampled_from(Context),
    st.sampled_from(JoinMode), st.integers(1, 3), st.lists(st.sampled_from([0, 1, 1]), min_size=1, max_size=5),
    st.sampled_from([None, 40, 70]), st.sampled_from([None, 60]),
)  # fmt: skip
def test_wishes_make_the_contexts_of_the_record(workers, organizer, mode, context, join, pool, order, limit, total):
    params = SamplingParams(max_tokens=50, max_episode_tokens=total, stop=("yy",))
    e = engine([organizer, *workers], mode, context, join, pool, params, max_length=limit)
    e.run([*order, 1])
    core, episode = e.core, e.core.episode
    assert core.done and episode.finish
    assert e.released == set(range(len(core.speakers)))
    assert all(trace.finish for trace in episode.traces)
    assert (episode.answer is None) == (episode.finish != "answer")
    for trace in episode.traces:
        assert "".join(trace.pieces).endswith(trace.text)
        for joined in trace.joins:
            inserted = trace.tokens[joined.at : joined.at + joined.length]
            assert inserted == tokens(episode.traces[joined.worker].returned or "")
            assert not any(trace.sampled[joined.at : joined.at + joined.length])
    assert limit is None or all(len(e.expected(k)) <= limit for k in range(len(core.speakers)) if k == 0)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(WORKERS, max_size=3), ORGANIZERS, st.sampled_from(Mode), st.sampled_from(Context),
    st.sampled_from(JoinMode), st.lists(st.sampled_from([0, 1, 1]), min_size=1, max_size=5), st.integers(0, 60),
)  # fmt: skip
def test_contexts_can_be_rebuilt_at_any_step(workers, organizer, mode, context, join, order, pause):
    """An engine that dropped all contexts gets the same ones again, and the episode continues unchanged."""
    e, paused = (engine([organizer, *workers], mode, context, join) for _ in range(2))
    e.run([*order, 1])
    paused.run([*order, 1], pause=pause)
    assert paused.core.episode.to_dict() == e.core.episode.to_dict()


def test_an_organizer_and_its_worker_in_wishes():
    e = engine(["<FORK-1>s</FORK-1><JOIN-1><ANSWER>4</ANSWER>", "<RETURN>42</RETURN>"], join="append")
    core, seen = e.core, []
    e.carry_out(core.start())
    for agent, text in ((0, "<FORK-1>s</FORK-1>"), (1, "<RETURN>42</RETURN>"), (0, "<JOIN-1>")):
        for token in tokens(text):
            wishes = core.accept(agent, token, 0.0)
            seen += [wish for wish in wishes if not isinstance(wish, Feed) or len(wish.tokens) > 1]
            e.carry_out(wishes)
    fork = len("O:q<FORK-1>s</FORK-1>")
    start = fork + len("W:<RETURN>4")
    assert seen == [
        Fork(1, 0, fork),
        Feed(1, tokens("W:")),
        Splice(0, 1, start, start + 1, "append"),
        Feed(0, tokens("</JOIN-1>")),
    ]
    assert core.episode.joins == 1 and core.speakers[1].done and not core.done


def test_parallel_agents_share_all_of_the_prompt_but_its_last_token():
    e = engine([], "parallel", pool=2)
    assert e.core.start() == [Begin(0, tokens("O:q"), "solo"), Fork(1, 0, 2), Feed(1, tokens("q"))]


def test_calls_after_the_end_change_nothing():
    e = engine(["<ANSWER>1</ANSWER>"])
    e.run([])
    assert e.core.accept(0, 65, 0.0) == [] and e.core.fail(0, "late") == [] and e.core.end("cancelled") == []
    assert e.core.episode.finish == "answer" and e.core.episode.failures == []


def test_a_listener_that_raises_ends_the_episode_at_the_tick():
    heard = []

    def listen(event):
        heard.append(event)
        if isinstance(event, Event) and event.kind == "fork":
            raise OSError("gone")

    e = engine(["<FORK-1>s</FORK-1>" + "x" * 50], listener=listen)
    e.run([])
    assert e.core.episode.finish == "cancelled" and isinstance(e.core.record.listener_error, OSError)
    assert heard[-1].kind == "fork" and e.released == {0, 1}


def test_a_crash_is_recorded_and_releases():
    e = engine(["x" * 20])
    e.carry_out(e.core.start())
    assert e.core.crash(LookupError("no such word")) == [Release(0)]
    assert e.core.episode.finish == "failed" and e.core.episode.failures == ["LookupError: no such word"]


@pytest.mark.parametrize("module", ["core", "contexts", "params"])
def test_no_torch_and_no_transformers_come_along(module):
    code = (
        f"import sys, asyncthink.episode.{module}; sys.exit(any(m in sys.modules for m in ('torch', 'transformers')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
