"""A tag that an agent has begun when its tokens run out is completed: with every tokenizer, and with few positions."""

from __future__ import annotations

import functools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncthink.engine.prompting import texts_for
from asyncthink.episode.core import EpisodeCore
from asyncthink.episode.options import Options
from asyncthink.episode.params import SamplingParams
from asyncthink.protocol.codec import Codec
from scripted import PROMPTS
from toy_tokenizers import KINDS

CODECS = {kind: functools.cache(lambda make=make: Codec(make())) for kind, make in KINDS.items()}


def ran_out(kind: str, guide: str, drawn: str, max_tokens: int | None = None, positions: int | None = None):
    """The core after one agent drew the tokens of ``drawn``; by default these are all that it may draw."""
    codec = CODECS[kind]()
    prompt = codec.encode([("q", False)])
    tokens = codec.encode([(drawn, True)], continues=True)
    limits = SamplingParams(max_tokens=max_tokens or len(tokens))
    core = EpisodeCore(
        "q", prompt, limits, Options(mode="sequential", guide=guide), texts_for(codec, PROMPTS), max_length=positions
    )
    core.start()
    for token in tokens:
        core.accept(0, token, -1.0)
    return core


kinds, guides = st.sampled_from(sorted(KINDS)), st.sampled_from(["legal", "plan"])
#: Long enough that a drawn "<ANSWER>" comes before the tokens run out.
answers = st.sampled_from(["2 4 " * 5 + end for end in ("4", "42", "2 4")])
drawn_answers = st.tuples(kinds, guides, answers, st.integers(0, len("</ANSWER")))


@settings(max_examples=80, deadline=None)
@given(drawn_answers)
def test_a_begun_closing_tag_is_completed(case):
    kind, guide, answer, cut = case
    begins = "<ANSWER>" if guide == "legal" else ""
    core = ran_out(kind, guide, begins + answer + "</ANSWER>"[:cut])
    assert core.done
    assert core.episode.answer == answer
    assert core.episode.traces[0].text == f"<ANSWER>{answer}</ANSWER>"


@settings(max_examples=80, deadline=None)
@given(drawn_answers, st.integers(0, 9))
def test_it_is_completed_where_the_positions_allow(case, spare):
    kind, guide, answer, cut = case
    drawn = ("<ANSWER>" if guide == "legal" else "") + answer + "</ANSWER>"[:cut]
    literal = texts_for(CODECS[kind](), PROMPTS).literal
    free = ran_out(kind, guide, drawn)
    tight = free.speakers[0].length - len(free.episode.traces[0].forced) + spare
    tight += len(literal("</ANSWER>")) + (len(literal("<ANSWER>")) if guide == "plan" else 0)
    core = ran_out(kind, guide, drawn, positions=tight)
    assert core.done
    assert core.speakers[0].length <= tight
    assert core.episode.format_errors == []
    if len(literal("</ANSWER>"[cut:])) <= len(literal("</ANSWER>")) + spare:
        assert core.episode.answer == answer
    else:
        assert core.episode.answer == answer + "</ANSWER>"[:cut]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cut", range(len("<ANSWER>")))
def test_a_begun_answer_is_completed(kind, cut):
    drawn = "4 " + "<ANSWER>"[:cut]
    count = len(CODECS[kind]().encode([(drawn, True)], continues=True))
    tokens = next(limit for limit in range(count + 1, 99) if limit - count >= max(1, limit // 4))
    core = ran_out(kind, "legal", drawn, tokens)
    assert core.speakers[0].text == "4 <ANSWER>"
