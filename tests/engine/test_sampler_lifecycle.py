"""How calls of the sampler end after any failure: other episodes continue, and no page leaks."""

from __future__ import annotations

import dataclasses
import gc
import re
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sampler import GREEDY, SHARED, clean

import tiny_models as tm
from asyncthink import ForkJoinSampler, SamplingParams
from asyncthink.engine import prompting
from asyncthink.episode.records import Event
from asyncthink.model.decoder import Decoder
from scripted import PROMPTS, ScriptedDecoder, sampler, tokenizer

EVENTS = 180  # more than an episode of SHARED has


@pytest.mark.parametrize("error", [BrokenPipeError("client gone"), KeyboardInterrupt()])
@settings(max_examples=25, deadline=None)
@given(last=st.integers(0, EVENTS))
def test_a_listener_that_raises_at_any_event_leaves_nothing_behind(error, last):
    s = sampler([*SHARED, *(text.replace("O:q", "O:r") for text in SHARED)], context="shared")
    with s.stream("r", GREEDY) as bystander:
        heard = []

        def listen(number, event):
            heard.append(event)
            if len(heard) > last:
                raise error

        try:
            s.generate(["q", "q"], GREEDY, on_event=listen)
        except type(error):
            assert len(heard) > last
        if isinstance(error, Exception):
            assert list(bystander)[-1].text == "42"  # goes on unharmed
    assert s.scheduler.idle
    clean(s)


def test_a_listener_that_raises_ends_its_own_episode_alone():
    s = sampler([text.replace("O:q", f"O:{q}") for q in "qr" for text in SHARED])
    answers = {}

    def listen(number, event):
        if number == 0 and isinstance(event, Event) and event.kind == "fork":
            raise BrokenPipeError("client gone")
        if isinstance(event, Event) and event.kind == "answer":
            answers[number] = event.text

    with pytest.raises(BrokenPipeError, match="client gone"):
        s.generate(["q", "r"], GREEDY, on_event=listen)
    assert answers == {1: "42"}
    clean(s)


def test_a_listener_may_not_call_its_sampler():
    s = sampler(SHARED)
    with pytest.raises(RuntimeError, match="sampler: expected a call from outside, got one from within its own step"):
        s.generate(["q"], GREEDY, on_event=lambda number, event: s.generate(["q"], GREEDY))
    clean(s)


def test_a_stream_without_references_is_cancelled():
    s = sampler(SHARED)
    for _ in range(3):
        for event in s.stream("q", GREEDY):
            if isinstance(event, Event) and event.kind == "fork":
                assert s.cache.used_pages
                break
        del event
        gc.collect()
        assert s.scheduler.idle
        clean(s)
    stream = s.stream("q", GREEDY)  # never begun
    del stream
    gc.collect()
    assert s.scheduler.idle


def test_a_stream_closed_by_a_listener_is_dropped_after_the_step():
    s = sampler([text.replace("O:q", f"O:{q}") for q in "qr" for text in SHARED])
    stream = s.stream("r", GREEDY)
    next(stream)
    (episode,) = s.generate(["q"], GREEDY, on_event=lambda number, event: stream.close())
    assert episode.answer == "42" and stream.episode.finish == "cancelled"
    clean(s)


def test_threads_take_turns():
    model, tok = tm.organizer()
    decoder = Decoder(model, num_pages=512)
    samplers = [ForkJoinSampler(decoder, tok, prompts=PROMPTS, mode=mode) for mode in ("asyncthink", "sequential")]
    params = [SamplingParams(temperature=0.8, seed=k, max_tokens=40) for k in range(3)]
    alone = [[[t.tokens for t in e.traces] for e in s.generate(list("abc"), params)] for s in samplers]
    results: dict[int, object] = {}

    def work(number):
        s = samplers[number % 2]
        try:
            if number < 4:
                episodes = s.generate(list("abc"), params)
            else:
                streams = [s.stream(q, p) for q, p in zip("abc", params, strict=True)]
                episodes = [(list(stream), stream.episode)[1] for stream in streams]
            results[number] = [[t.tokens for t in e.traces] for e in episodes]
        except BaseException as error:
            results[number] = error

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {number: alone[number % 2] for number in range(8)}
    assert all(s.scheduler.idle for s in samplers)


def test_a_row_of_nan_ends_its_agent_alone():
    model, tok = tm.organizer()
    s = ForkJoinSampler(model, tok, prompts=PROMPTS, mode="sequential", num_pages=128)
    with torch.no_grad():
        model.model.embed_tokens.weight[tok.convert_tokens_to_ids("Z")] = float("nan")
    params = SamplingParams(max_tokens=8)
    fine, broken, other = s.generate(["q", "Z", "r"], params)
    assert broken.finish == "failed" and broken.traces[0].finish == "failed" and broken.answer is None
    assert broken.failures == ["solo: its logits hold NaN or no finite value"] and broken.format_errors == []
    healthy = s.generate(["q", "r"], params)
    assert [e.traces[0].tokens for e in healthy] == [fine.traces[0].tokens, other.traces[0].tokens]
    assert [e.finish for e in healthy] == [fine.finish, other.finish] and not fine.failures


def test_a_worker_of_nan_returns_nothing(monkeypatch):
    worker = "O:q\n<FORK-1>a</FORK-1>W:"
    s = sampler(["O:q\n<FORK-1>a</FORK-1>hm<JOIN-1></JOIN-1><ANSWER>7</ANSWER>", worker])
    plain = s.decoder.forward

    def poisoned(tokens, plan, rows):
        logits = plain(tokens, plan, rows)
        for number, row in enumerate(rows):
            if s.decoder.seen(plan, row) == worker:
                logits[number, 3] = float("nan")
        return logits

    monkeypatch.setattr(s.decoder, "forward", poisoned)
    (episode,) = s.generate(["q"], GREEDY)
    assert episode.answer == "7" and episode.traces[1].finish == "failed" and episode.traces[0].joins[0].length == 0
    assert episode.failures == ["worker 1: its logits hold NaN or no finite value"]
    clean(s)


def test_an_exception_ends_its_own_episode_alone(monkeypatch):
    s = sampler([text.replace("O:q", f"O:{q}") for q in "qr" for text in SHARED])
    encode, failed = prompting.encode_template, []

    def fails(codec, prompts, name, **slots):
        if name.startswith("worker") and not failed:
            failed.append(name)
            raise LookupError("no such word")
        return encode(codec, prompts, name, **slots)

    monkeypatch.setattr(prompting, "encode_template", fails)
    with pytest.warns(RuntimeWarning, match="an episode failed and was ended: LookupError: no such word"):
        broken, fine = s.generate(["q", "r"], GREEDY)
    assert broken.finish == "failed" and broken.failures == ["LookupError: no such word"]
    assert fine.answer == "42"
    clean(s)


def test_arguments_are_checked_before_anything_runs():
    s = sampler(SHARED)
    for call, message in (
        (lambda: s.generate("q"), "questions: expected a list of strings, got one string"),
        (lambda: s.generate(None), "questions: expected a list of strings, got NoneType"),
        (lambda: s.generate(["q", 3]), r"questions\[1\]: expected a string or a list of chat messages, got int"),
        (lambda: s.generate(["q"], [GREEDY, GREEDY]), "params: expected one or 1"),
        (lambda: s.generate(["q"], [None]), r"params\[0\]: expected SamplingParams, got NoneType"),
        (lambda: s.stream("q", {"seed": 3}), "params: expected SamplingParams, got dict"),
        (lambda: s.stream("x" * 5000, GREEDY), r"questions\[0\]: expected fewer than"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
        assert s.decoder.rows == [] and s.scheduler.idle


WRONG = {
    "seed": [None, -1, 1.0],
    "stop": [None, "x", ("",), (3,)],
    "temperature": [None, "hot", float("nan"), -1],
    "top_k": [None, 1.5, -1],
    "top_p": [None, 0.0],
    "min_p": ["0", 2],
    "max_tokens": [None, True, 0],
    "max_episode_tokens": [0, "3"],
    "timeout": [0, "1"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_a_parameter_that_cannot_be_is_named(name, value):
    with pytest.raises(ValueError, match=f"^{name}: expected .*, got {re.escape(repr(value))}$"):
        dataclasses.replace(GREEDY, **{name: value})


def test_a_stop_string_that_no_text_can_hold_is_named():
    with pytest.raises(ValueError, match=r"^stop\[1\]: expected text that UTF-8 can encode, got the lone surrogate"):
        dataclasses.replace(GREEDY, stop=("a", "\ud83d"))


def changed(model):
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(3)))


def agrees(s, model):
    """The recorded log-probabilities are those of the current weights."""
    trace = s.generate(["q"], SamplingParams(temperature=0.8, seed=1, max_tokens=24))[0].traces[0]
    with torch.no_grad():
        wanted = (model(torch.tensor([trace.tokens])).logits[0] / 0.8).log_softmax(-1)
    for k, (token, drawn, logprob) in enumerate(zip(trace.tokens, trace.sampled, trace.logprobs, strict=True)):
        assert not drawn or abs(wanted[k - 1, token].item() - logprob) < 1e-4


def test_new_weights_make_new_prefixes_in_every_sampler_of_a_decoder():
    model, tok = tm.organizer()
    prompts = dataclasses.replace(PROMPTS, organizer="An organizer: {question}\n", solo="A solo agent: {question}\n")
    decoder = Decoder(model, num_pages=256)
    samplers = [ForkJoinSampler(decoder, tok, prompts=prompts, mode=mode) for mode in ("asyncthink", "sequential")]
    for s in samplers:
        agrees(s, model)
    changed(model)
    for s in samplers:  # changed in place: seen without being told
        agrees(s, model)
    for weight in model.parameters():  # escapes torch's count of changes
        weight.data.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(4)))
    samplers[0].refresh()
    for s in samplers:
        agrees(s, model)
    with samplers[1].stream("q", GREEDY) as stream:
        next(stream)
        with pytest.raises(RuntimeError, match="refresh: expected no running episode in any sampler of this decoder"):
            samplers[0].refresh()


def test_prefixes_without_free_pages_are_not_cached():
    tok = tokenizer()
    decoder = ScriptedDecoder(tok, [text.replace("O:q", "O:" + "q" * 60) for text in SHARED], num_pages=46)
    prompts = dataclasses.replace(PROMPTS, solo="p" * 150 + "{question}")
    organized = ForkJoinSampler(decoder, tok, prompts=prompts, max_rows=64)
    alone = ForkJoinSampler(decoder, tok, prompts=prompts, mode="sequential")
    with organized.stream("q" * 60, GREEDY) as stream:
        next(stream)
        (episode,) = alone.generate(["z"], GREEDY)
        assert episode.finish == "out_of_pages" and not alone.prefixes._template("solo")
        assert next(stream)
    clean(organized)
