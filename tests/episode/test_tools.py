"""Calls of tools in the state machine of an episode: who waits, what enters, what is ignored."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_engine import ScriptedEngine, tokens

from asyncthink.episode.options import Options
from asyncthink.episode.params import SamplingParams
from asyncthink.episode.records import Episode
from asyncthink.episode.wishes import Call, Feed, Wish
from asyncthink.protocol.calls import ToolCall


class Braces:
    """A call is ``{name}``; ``[result]`` follows it. A name with ``?`` is malformed; ``}`` or the turn's end closes."""

    def read(self, turn: str, piece: str, ended: bool) -> ToolCall | None:
        _, begun, name = turn.rpartition("{")
        if not begun or not (ended or piece == "}"):
            return None
        name = name.removesuffix("}")
        return ToolCall(name, "{}", error="malformed" if "?" in name else "", ended=ended)

    def result(self, call: ToolCall, text: str) -> list[int]:
        return tokens(f"[{text}]")


class ToolEngine(ScriptedEngine):
    """Tools return the agent's number, ``delay`` steps after a call."""

    def __init__(self, scripts: Sequence[str], delay: int = 0, params: SamplingParams | None = None, **given: object):
        options = Options(**{name: given.pop(name) for name in ("mode", "answer", "join") if name in given})  # type: ignore[arg-type]
        super().__init__(scripts, options, params or SamplingParams(max_tokens=60), tools=Braces(), **given)
        self.delay, self.pending, self.calls = delay, list[tuple[int, int]](), list[Call]()

    def carry_out(self, wishes: Sequence[Wish]) -> None:
        calls = [wish for wish in wishes if isinstance(wish, Call)]
        self.calls += calls
        self.pending += [(self.core.record.step + self.delay, call.agent) for call in calls]
        super().carry_out([wish for wish in wishes if not isinstance(wish, Call)])

    def play(self, pause: int | None = None) -> Episode:
        self.carry_out(self.core.start())
        for step in range(200):
            if self.core.done:
                break
            if step == pause:
                self.lose_everything()
            due = [agent for when, agent in self.pending if when <= self.core.record.step]
            self.pending = [(when, agent) for when, agent in self.pending if agent not in due]
            for agent in due:
                self.carry_out(self.core.told(agent, str(agent)))
                self.check()
            for speaker in list(self.core.speakers):
                if speaker.draws and not self.core.done:
                    self.carry_out(self.core.accept(speaker.number, self._next(speaker.number), -1.0))
                    self.check()
            self.carry_out(self.core.tick())
        return self.core.episode


ORGANIZER = "<FORK-1>s</FORK-1>{t}on<JOIN-1><ANSWER>z</ANSWER>"
WORKER = "hm{t}so<RETURN>{t}42</RETURN>"


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.sampled_from(["{t}", "{?}", "a", "<RETURN>", "4", "</RETURN>", "{", "}"]), max_size=8).map("".join),
    st.sampled_from([ORGANIZER, ORGANIZER.replace("{t}", "")]), st.integers(0, 7), st.sampled_from(["exact", "link"]),
    st.integers(0, 60),
)  # fmt: skip
def test_tokens_do_not_depend_on_when_a_tool_returns(worker, organizer, delay, join, pause):
    prompt = ToolEngine([organizer, worker], 0, join=join).play()
    late = ToolEngine([organizer, worker], delay, join=join).play(pause)
    assert [trace.tokens for trace in late.traces] == [trace.tokens for trace in prompt.traces]
    assert [trace.tools for trace in late.traces] == [trace.tools for trace in prompt.traces]
    for trace in late.traces:
        for use in trace.tools:
            assert trace.tokens[use.at : use.at + use.length] == tokens(f"[{use.result}]")
            assert not any(trace.sampled[use.at : use.at + use.length])


def test_an_agent_that_waits_draws_nothing_and_its_inserted_text_is_not_drawn():
    e = ToolEngine([ORGANIZER, WORKER], delay=9)
    episode = e.play()
    organizer, worker = episode.traces
    assert (episode.answer, episode.format_errors) == ("z", [])
    assert (worker.returned, worker.text) == ("{t}42", "hm{t}[1]so<RETURN>{t}42</RETURN>")  # in a tag it is text
    assert organizer.text.startswith("<FORK-1>s</FORK-1>{t}[0]on")
    assert e.calls == [Call(0, "t", "{}"), Call(1, "t", "{}")]
    (use,) = worker.tools
    assert worker.steps[use.at] == worker.steps[use.at - 1] + 9
    assert episode.total_tokens == sum(map(sum, (trace.sampled for trace in episode.traces)))
    assert [event.text for event in episode.events if event.kind in ("call", "tool")] == ["t({})", "t({})", "0", "1"]


def test_the_end_of_a_turn_that_is_a_call_stays_in_the_context():
    e = ToolEngine(["say {t"], mode="sequential", answer="text")
    e.left[0] = [*tokens("say {t"), 3, *tokens("it is 0"), 3]
    episode = e.play()
    assert (episode.answer, episode.finish) == ("it is 0", "end")
    assert episode.traces[0].tokens == [*tokens("O:qsay {t"), 3, *tokens("[0]it is 0"), 3]
    assert "".join(episode.traces[0].pieces).startswith("O:qsay {t\x03[0]it is 0")


@pytest.mark.parametrize(
    ("given", "finish"),
    [({"params": SamplingParams(max_tokens=3)}, "budget"), ({"max_length": 7}, "length")],
)
def test_limits_end_an_agent_that_calls(given, finish):
    """The last token of the budget calls nothing; a result that the model has no positions for is left out."""
    e = ToolEngine(["{t}xyz"], mode="sequential", **given)
    assert e.play().finish == finish
    assert e.core.episode.traces[0].tools == []
    assert len(e.calls) == (finish == "length")


def test_late_results_are_ignored():
    e = ToolEngine([ORGANIZER, WORKER])
    e.carry_out(e.core.start())
    assert e.core.told(0, "nobody asked") == []
    for token in tokens("<FORK-1>s</FORK-1>{t}"):
        e.carry_out(e.core.accept(0, token, 0.0))
    assert not e.core.speakers[0].draws and e.core.speakers[1].draws
    e.carry_out(e.core.end("cancelled"))
    assert e.core.told(0, "late") == []
    assert e.core.episode.traces[0].tools == []


def test_a_malformed_call_is_answered_at_once():
    e = ToolEngine(["{?}"])
    e.carry_out(e.core.start())
    for token in tokens("{?"):
        e.carry_out(e.core.accept(0, token, 0.0))
    assert e.core.accept(0, ord("}"), 0.0) == [Feed(0, tokens("}")), Feed(0, tokens("[malformed]"))]
    assert e.core.speakers[0].draws
