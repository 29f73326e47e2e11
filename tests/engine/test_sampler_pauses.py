"""Episodes that made room for others go on where they were; agents at the model's last position end by themselves."""

from __future__ import annotations

import pytest
import torch
from test_sampler import GREEDY, ISOLATED, SHARED, clean

import tiny_models as tm
from asyncthink import ForkJoinSampler, SamplingParams
from asyncthink.episode.options import Context, JoinMode
from asyncthink.episode.records import TokenEvent
from scripted import PROMPTS, sampler


@pytest.mark.parametrize("context", Context)
@pytest.mark.parametrize("join", JoinMode)
@pytest.mark.parametrize("pages", [45, 52, 60])
def test_a_paused_stream_goes_on_where_it_was(context, join, pages):
    texts = SHARED if context == "shared" else ISOLATED
    scripts = [text.replace("O:q", f"O:{q}").replace("I:a", f"I:{q}a") for q in "qrs" for text in texts]
    if context == "isolated":
        scripts = [text.replace("<FORK-1>a", f"<FORK-1>{text[2]}a") for text in scripts]
    s = sampler(scripts, num_pages=pages, context=context, join=join)
    streams = {q: s.stream(q, GREEDY) for q in "qrs"}
    seen = {q: {} for q in streams}
    events = {q: [] for q in streams}
    going = dict(streams)
    while going:
        for q, stream in list(going.items()):
            event = next(stream, None)
            if event is None:
                del going[q]
            elif isinstance(event, TokenEvent):
                seen[q][event.agent] = seen[q].get(event.agent, "") + event.text
            else:
                events[q].append(event)
    assert s.scheduler.preemptions
    for q, stream in streams.items():
        assert stream.episode.finish in ("answer", "out_of_pages"), stream.episode.failures
        assert events[q] == stream.episode.events
        assert seen[q] == {trace.agent: trace.text for trace in stream.episode.traces if trace.text}
    assert [stream.episode.answer for stream in streams.values()].count("42") >= 2
    clean(s)


@pytest.mark.parametrize("mode", ["sequential", "parallel"])
def test_paused_lone_traces_go_on_where_they_were(mode):
    scripts = [f"S:{q}\n{q * 40}<ANSWER>{q}</ANSWER>" for q in "abcd"]
    s = sampler(scripts, num_pages=90 if mode == "parallel" else 45, mode=mode, pool=3)
    episodes = s.generate(list("abcd"), GREEDY)
    assert [e.answer for e in episodes] == list("abcd") and s.scheduler.preemptions
    assert all(trace.decoded == 40 + 18 for e in episodes for trace in e.traces)
    clean(s)


@pytest.mark.parametrize("join", JoinMode)
def test_pauses_change_no_token_of_a_model(join):
    """K and V that are computed again equal the first ones, as the log-probabilities show."""
    model, tok = tm.organizer()
    params = [SamplingParams(temperature=0.8, seed=k, max_tokens=60) for k in range(6)]
    roomy = ForkJoinSampler(model, tok, prompts=PROMPTS, num_pages=512, join=join)
    tight = ForkJoinSampler(model, tok, prompts=PROMPTS, num_pages=14, join=join)
    expected, got = (s.generate(list("abcdef"), params) for s in (roomy, tight))
    assert tight.scheduler.preemptions
    for one, other in zip(expected, got, strict=True):
        if other.finish == "out_of_pages":
            continue
        for a, b in zip(one.traces, other.traces, strict=True):
            assert a.tokens == b.tokens
            torch.testing.assert_close(a.logprobs, b.logprobs, atol=1e-4, rtol=0)
    assert sum(e.finish != "out_of_pages" for e in got) >= 4


def positions(scripts, limit, **options):
    s = sampler(scripts, **options)
    s.decoder.max_length = limit
    return s


def test_an_agent_at_the_last_position_ends_by_itself():
    s = positions(["S:q\n" + "x" * 100, "S:r\nfine<ANSWER>1</ANSWER>"], 40, mode="sequential")
    long, fine = s.generate(["q", "r"], GREEDY)
    assert long.finish == "length" and long.traces[0].finish == "length" and len(long.traces[0].tokens) == 40
    assert long.format_errors == ["solo: budget exceeded: 40 positions of the model"]
    assert fine.answer == "1"
    clean(s)
    with pytest.raises(ValueError, match=r"questions\[1\]: expected fewer than 40 tokens .*positions.* got 103"):
        s.generate(["r", "x" * 100], GREEDY)
    assert s.scheduler.idle


def test_a_worker_at_the_last_position_returns_nothing():
    shared = "O:q\n<FORK-1>a</FORK-1>W:"
    whole = "O:q\n<FORK-1>a</FORK-1>!<JOIN-1></JOIN-1><ANSWER>1</ANSWER>"
    for limit in (len(shared) + 10, len(shared)):  # while it writes; before it can
        s = positions([whole[: whole.index("<ANSWER")], shared + "x" * 100], limit)
        (episode,) = s.generate(["q"], GREEDY)
        worker = episode.traces[1]
        assert worker.finish in ("length", "cancelled") and worker.returned is None
        s = positions([whole, shared + "x" * 100], len(whole) + 20)
        (episode,) = s.generate(["q"], GREEDY)
        assert episode.answer == "1" and episode.traces[1].finish == "length"
        clean(s)


def test_a_return_that_does_not_fit_the_positions_ends_the_organizer():
    shared = "O:q\n<FORK-1>a</FORK-1>W:<RETURN>" + "r" * 30 + "</RETURN>"
    s = positions(["O:q\n<FORK-1>a</FORK-1>" + "x" * 20 + "<JOIN-1>", shared], len(shared) + 2)
    (episode,) = s.generate(["q"], GREEDY)
    assert episode.finish == "length" and episode.joins == 0 and episode.answer is None
    clean(s)
