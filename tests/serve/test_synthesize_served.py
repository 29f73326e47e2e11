"""Traces from our own server: it runs whole episodes under a guide, and the cold start can learn them."""

from __future__ import annotations

from pathlib import Path

import pytest
from served import Served, served

from asyncthink import ForkJoinSampler
from asyncthink.episode.records import Episode
from asyncthink.serve.settings import Settings
from asyncthink.train.synthesize.actions import actions_of, follows
from asyncthink.train.synthesize.asking import Document, Organized, agents_of
from asyncthink.train.synthesize.questions import Question
from asyncthink.train.traces import read_traces
from toy_tokenizers import real_model

pytest.importorskip("openai", reason="the extra synthesize is not installed")
from asyncthink.train.synthesize.run import Synthesis, synthesize

QUESTIONS = [Question("3 5 = 8"), Question("2 2 = 4"), Question("7 1 = 6")]


@pytest.mark.parametrize("context", ["shared", "isolated"])
def test_episodes_become_traces(tiny: Served, tmp_path: Path, context: str) -> None:
    asking = Organized("plan", pool=3, forks=(1, 2), context=context)
    options = Synthesis(tiny.url, "tiny", tmp_path / "t.jsonl", asking, samples=2, max_tokens=60)
    totals = synthesize(options, QUESTIONS, "none")
    traces = read_traces(tmp_path / "t.jsonl")
    assert (totals.kept, len(traces), totals.unpriced) == (6, 6, 0)
    assert totals.completion_tokens > 0
    for trace in traces:
        asked = trace.source["actions"]
        assert follows(actions_of(trace), asked)
        assert len(trace.agents) - 1 == sum(action.startswith("FORK") for action in asked)
        assert (trace.context, trace.pool) == (context, 3)


def test_a_trace_is_what_the_agents_wrote(tiny: Served) -> None:
    options = {"mode": "asyncthink", "guide": "plan", "pool": 3, "forks": 2, "record": True}
    messages = [{"role": "user", "content": "3 5 = 8"}]
    body = {"messages": messages, "seed": 3, "max_tokens": 60, "asyncthink": options}
    answer = tiny.post("/v1/chat/completions", **body).json()
    episode = Episode.from_dict(answer["asyncthink"]["record"])
    for agent, trace in zip(agents_of(episode), episode.traces, strict=True):
        inserted = {k for join in trace.joins for k in range(join.at, join.at + join.length)}
        wrote = {*trace.forced, *(k for k, drawn in enumerate(trace.sampled) if drawn)}
        text = "".join(trace.pieces[k] for k in sorted(wrote - inserted))
        name = "RETURN" if trace.role == "worker" else "ANSWER"
        assert text.startswith(agent.text.removesuffix(f"</{name}>"))
        assert agent.text.endswith(f"<{name}>{trace.returned}</{name}>")


def test_other_servers_have_no_episodes(tiny: Served, tmp_path: Path) -> None:
    """A record that is missing is a rejection with its reason, not an error of the program."""
    options = Synthesis(tiny.url, "tiny", tmp_path / "t.jsonl", Document(), max_tokens=20, attempts=1)
    assert synthesize(options, QUESTIONS[:1], "none").kept == 0
    with pytest.raises(ValueError, match=r"expected a reply with asyncthink.record"):
        Organized("plan").read("text", {})


@pytest.mark.slow
@pytest.mark.skipif(real_model() is None, reason="SmolLM2-135M-Instruct is not there")
def test_an_instruct_model_organizes_under_a_guide(tmp_path: Path) -> None:
    folder = real_model()
    assert folder is not None
    sampler = ForkJoinSampler(folder, guide="plan", num_pages=512)
    questions = [Question("Name a fruit and a vegetable."), Question("What are 2 + 3 and 4 + 5?")]
    with served(sampler, Settings("smol")) as server:
        asking = Organized("plan", pool=3, forks=(1, 2))
        options = Synthesis(server.url, "smol", tmp_path / "t.jsonl", asking, max_tokens=60, samples=2)
        totals = synthesize(options, questions, "none")
    assert totals.kept == 4
    assert all(trace.answer.strip() for trace in read_traces(tmp_path / "t.jsonl"))
