"""Rows of an episode are the contexts that its agents had, and every drawn token is in exactly one mask."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncthink.episode.options import Options
from asyncthink.episode.params import SamplingParams
from asyncthink.episode.records import Episode
from asyncthink.integrations.agent_rows import agent_rows

sys.path.append(str(Path(__file__).parents[1] / "episode"))
from scripted_engine import ScriptedEngine

SCRIPTS = [
    "a<FORK-1>x</FORK-1>b<FORK-2>y</FORK-2><JOIN-2>c<JOIN-1>d<ANSWER>z</ANSWER>",
    "p<FORK-1>deep</FORK-1>q<JOIN-1><RETURN>one</RETURN>",
    "r<RETURN>two</RETURN>",
    "<RETURN>three</RETURN>",
]
ORDERS = st.lists(st.integers(0, 1), min_size=1, max_size=5).filter(any)


def run(order: list[int], steps: int = 400, **options: object) -> ScriptedEngine:
    engine = ScriptedEngine(SCRIPTS, Options(pool=4, **options), SamplingParams(max_tokens=200))  # type: ignore[arg-type]
    engine.run(order, steps)
    return engine


@settings(deadline=None, max_examples=60)
@given(ORDERS, st.sampled_from(["shared", "isolated"]), st.integers(1, 2), st.integers(0, 90))
def test_a_row_is_the_context_of_its_agent(order: list[int], context: str, depth: int, steps: int) -> None:
    engine = run(order, steps, context=context, depth=depth)
    episode = engine.core.episode
    rows = agent_rows(episode)
    drew = [trace.agent for trace in episode.traces if trace.decoded]
    assert sorted(row.agent for row in rows) == sorted(drew)
    for row in rows:
        whole, trace = row.prompt + row.response, episode.traces[row.agent]
        assert engine.expected(row.agent)[: len(whole)] == whole
        assert sum(row.mask) == trace.decoded
        assert row.mask[0] == row.mask[-1] == 1
        assert [bool(drawn) for drawn in row.mask] == [logprob != 0 for logprob in row.logprobs]
        assert len(row.mask) == len(row.response) == len(row.logprobs)
    assert [row.agent for row in rows] == [agent for agent in drew if agent] + [agent for agent in drew if not agent]


def test_a_return_is_inserted_and_not_learned() -> None:
    (*_, organizer) = agent_rows(run([1]).core.episode)
    inserted = [chr(token) for token, drawn in zip(organizer.response, organizer.mask, strict=True) if not drawn]
    assert "".join(inserted) == "two</JOIN-2></JOIN-1>"  # worker 1 wrote a fork, which it may not at depth 1
    assert organizer.role == "organizer"


def test_other_joins_are_no_rows_of_tokens() -> None:
    with pytest.raises(ValueError, match="join: expected 'exact' for rows of tokens, got 'append'"):
        agent_rows(Episode("q", "asyncthink", join_mode="append"))
