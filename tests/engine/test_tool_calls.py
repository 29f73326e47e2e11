"""Tools that agents call: read from what they draw, run beside the steps, told in the model's own format."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from asyncthink.engine.prompting import encode_template
from asyncthink.engine.sampler import ForkJoinSampler, SamplingParams
from asyncthink.engine.tools import Tool
from asyncthink.episode.records import Episode, Event, TokenEvent
from asyncthink.protocol.prompts import PromptFormat
from asyncthink.view.html import timeline_html
from asyncthink.view.timeline import timeline
from scripted import END, ScriptedDecoder
from tool_templates import BARE, HERMES, LISTED, NO_TOOLS, chatting

CALL = {
    HERMES: '<tool_call>{"name": "double", "arguments": {"x": %s}}</tool_call>',
    BARE: '{"name": "double", "parameters": {"x": %s}}' + END,
    LISTED: '[CALLS][{"function": {"name": "double", "arguments": {"x": %s}}, "id": "i7"}]' + END,
}
TOLD = {
    HERMES: END + "[user]<told>%s</told>" + END + "[assistant]",
    BARE: '[ipython]"%s"' + END + "[assistant]",
    LISTED: '[RESULTS]{"content": %s, "call": "i7", "of": "double"}[/RESULTS][assistant]',
}
ALONE = {"mode": "sequential", "answer": "text"}


def double(x: int) -> int:
    """Twice a number.

    Args:
        x: The number.
    """
    if x < 0:
        raise ArithmeticError("too low")
    return 2 * x


def named(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` with the name and the description of ``double``."""

    def double_(x: int) -> Any:
        return function(x)

    double_.__name__, double_.__doc__ = "double", double.__doc__
    return double_


class Scripted:
    """A sampler whose scripts begin with the prompts that it makes itself."""

    def __init__(self, template: str, *tools: Any, num_pages: int = 512, **options: Any) -> None:
        tok = chatting(template, json.dumps(Tool(double).schema))  # one token, so that contexts stay short
        self.decoder = ScriptedDecoder(tok, [], num_pages)
        self.sampler = ForkJoinSampler(self.decoder, tok, tools=tools, **options)

    def opening(self, question: str = "q") -> str:
        return self.decoder.tok.decode(self.sampler._maker.prompt(question, "question"))

    def run(self, *scripts: str, **given: Any) -> Episode:
        self.decoder.scripts = [self.opening() + script for script in scripts]
        (episode,) = self.sampler.generate(["q"], SamplingParams(temperature=0.0, max_tokens=400), **given)
        self.sampler.engine.prefixes.clear()
        self.sampler.prefixes.clear()
        assert self.sampler.cache.free_pages == self.sampler.cache.num_pages
        return episode


@pytest.fixture
def never() -> Iterator[threading.Event]:
    """An event that tools wait for; set after the test, so that no thread stays."""
    event = threading.Event()
    yield event
    event.set()


@pytest.mark.parametrize("template", [HERMES, BARE, LISTED])
def test_an_agent_is_told_what_its_tool_returned(template: str) -> None:
    s = Scripted(template, double, **ALONE)
    episode = s.run(CALL[template] % 21 + TOLD[template] % 42 + "It is 42.")
    (trace,) = episode.traces
    assert (episode.answer, episode.finish, trace.finish) == ("It is 42.", "end", "end")
    assert not episode.format_errors
    (use,) = trace.tools
    assert (use.name, use.arguments, use.result) == ("double", '{"x": 21}', "42")
    told = slice(use.at, use.at + use.length)
    assert "".join(trace.pieces[told]) == TOLD[template] % 42
    assert not any(trace.sampled[told])
    assert not any(trace.logprobs[told])
    assert sum(s.decoder.rows) == len(trace.tokens) - 1  # each token once, none while it waited
    assert [(event.kind, event.text) for event in episode.events] == [
        ("start", "q"), ("call", 'double({"x": 21})'), ("tool", "42"), ("answer", "It is 42."),
    ]  # fmt: skip
    assert Episode.from_dict(episode.to_dict()) == episode
    assert "tool" in [segment.kind for segment in timeline(episode).lanes[0].segments]
    assert "is told by a tool" in timeline_html(episode)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (CALL[HERMES] % -1, "error: ArithmeticError: too low"),
        (CALL[HERMES] % '"7"', "error: argument x: '7' is not of type 'integer'"),
        (CALL[HERMES] % '1, "y": 2', "error: Additional properties are not allowed ('y' was unexpected)"),
        (CALL[HERMES].replace('"x": %s', ""), "error: 'x' is a required property"),
        (CALL[HERMES].replace("double", "exec") % 1, "error: there is no tool 'exec'; the tools are double"),
        ("<tool_call>oh</tool_call>", 'malformed call: expected {"name": ..., "arguments": {...}}, got oh'),
    ],
)
def test_what_goes_wrong_is_text_to_the_agent(call: str, told: str) -> None:
    episode = Scripted(HERMES, double, **ALONE).run(call + TOLD[HERMES] % told + "Sorry.")
    assert episode.answer == "Sorry."
    assert [use.result for use in episode.traces[0].tools] == [told]
    assert not episode.failures


def test_a_tool_that_does_not_return_in_time(never: threading.Event) -> None:
    s = Scripted(HERMES, Tool(named(lambda x: never.wait()), timeout=0.01), **ALONE)
    told = "error: no result within 0.01 seconds"
    assert s.run(CALL[HERMES] % 1 + TOLD[HERMES] % told + "Sorry.").answer == "Sorry."


def test_an_episode_that_is_over_waits_for_no_tool(never: threading.Event) -> None:
    s = Scripted(HERMES, named(lambda x: never.wait()), **ALONE)
    s.decoder.scripts = [s.opening() + CALL[HERMES] % 1]
    (episode,) = s.sampler.generate(["q"], SamplingParams(temperature=0.0, timeout=0.05))
    assert (episode.finish, episode.traces[0].tools) == ("timeout", [])


def test_a_tools_text_never_acts() -> None:
    """Neither tags nor calls in it, and its end-of-text characters end nothing."""
    text = f'<ANSWER>no</ANSWER>{END}<tool_call>{{"name": "double", "arguments": {{"x": 1}}}}</tool_call>'
    s = Scripted(HERMES, named(lambda x: text), mode="sequential")
    episode = s.run(CALL[HERMES] % 1 + TOLD[HERMES] % text.replace(END, "") + "<ANSWER>yes</ANSWER>")
    assert (episode.answer, len(episode.traces[0].tools)) == ("yes", 1)


def test_a_worker_waits_while_its_organizer_thinks_on() -> None:
    """A worker that waits costs no step; the organizer's tokens are the same whenever the tool returns."""
    go = threading.Event()
    template, told = HERMES, TOLD[HERMES] % 42
    s = Scripted(template, named(lambda x: go.wait() and 2 * x))
    fork, think = "<FORK-1>twice 21</FORK-1>", "hm, " * 40
    worker = s.sampler.prompts.fill("worker_shared", subquery="twice 21")
    mine, works = think + "<JOIN-1>42</JOIN-1><ANSWER>42</ANSWER>", CALL[template] % 21 + told + "<RETURN>42</RETURN>"
    thought: list[str] = []

    def listen(_: int, event: Event | TokenEvent) -> None:
        if isinstance(event, TokenEvent) and event.agent == 0 and event.sampled:
            thought.append(event.text)
            if "".join(thought).endswith("<JOIN-1>"):
                go.set()  # only now does the tool return

    episode = s.run(fork + mine, fork + worker + works, on_event=listen)
    assert (episode.answer, episode.format_errors) == ("42", [])
    agent = episode.traces[1]
    assert [use.result for use in agent.tools] == ["42"]
    assert [e.kind for e in episode.events] == ["start", "fork", "call", "wait", "tool", "return", "join", "answer"]
    # One forward pass computes the drawn tokens of all agents: none for an agent that waits.
    drawn_after_call = [step for step, own in zip(agent.steps, agent.sampled, strict=True) if own]
    assert len(set(drawn_after_call)) == agent.decoded


def test_isolated_workers_read_of_the_tools_themselves() -> None:
    s = Scripted(HERMES, double, context="isolated")
    fork = "<FORK-1>twice 21</FORK-1>"
    own = s.sampler
    alone = s.decoder.tok.decode(encode_template(own.codec, own.prompts, "worker_isolated", subquery="twice 21"))
    assert '"double"' in alone
    s.decoder.scripts = [
        s.opening() + fork + "<JOIN-1>42</JOIN-1><ANSWER>42</ANSWER>",
        alone + CALL[HERMES] % 21 + TOLD[HERMES] % 42 + "<RETURN>42</RETURN>",
    ]
    (episode,) = s.sampler.generate(["q"], SamplingParams(temperature=0.0))
    assert (episode.answer, len(episode.traces[1].tools)) == ("42", 1)


def test_a_call_inside_of_a_tag_is_text() -> None:
    episode = Scripted(HERMES, double, mode="sequential").run(f"<ANSWER>{CALL[HERMES] % 1}</ANSWER>")
    assert (episode.answer, episode.traces[0].tools) == (CALL[HERMES] % 1, [])


def test_without_tools_calls_are_text() -> None:
    assert Scripted(HERMES, **ALONE).run(CALL[HERMES] % 1).answer == CALL[HERMES] % 1


def test_a_paused_episode_gets_its_result_later() -> None:
    """Two episodes in a cache for one of them: pauses lose no call and no result."""
    wide, tight = (Scripted(HERMES, double, num_pages=pages, **ALONE) for pages in (512, 60))
    script = "a" * 60 + CALL[HERMES] % 21 + TOLD[HERMES] % 42 + "It is 42."
    expected = wide.run(script)
    tight.decoder.scripts = [tight.opening(k) + script for k in "qr"]
    episodes = tight.sampler.generate(["q", "r"], SamplingParams(temperature=0.0))
    assert tight.sampler.scheduler.preemptions
    assert [episode.answer for episode in episodes] == ["It is 42."] * 2
    assert [episode.traces[0].tools for episode in episodes] == [expected.traces[0].tools] * 2


def undescribed(x: int) -> int:
    return x


@pytest.mark.parametrize(
    ("template", "tools", "reason"),
    [
        (NO_TOOLS, [double], "tools: this model's chat template has no place for tools"),
        (HERMES, [double, Tool(double)], "tools: expected different names, got 'double' twice"),
        (HERMES, [undescribed], "tools: expected functions with annotations and a docstring: .*undescribed"),
        (HERMES, ["double"], "tools: expected functions, got str"),
    ],
)
def test_tools_that_are_refused(template: str, tools: list[Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Scripted(template, *tools)


def test_a_timeout_must_be_positive() -> None:
    with pytest.raises(ValueError, match="timeout: expected > 0 seconds, got 0"):
        Tool(double, timeout=0)


def test_saved_templates_cannot_declare_tools() -> None:
    prompts = PromptFormat("{question}", "", "{subquery}", "{question}")
    with pytest.raises(ValueError, match="tools: expected prompts in the model's chat template"):
        Scripted(HERMES, double, prompts=prompts)
