"""The sampler on a real (tiny, random) transformer: log-probabilities against plain eager, seeds, shared weights."""

import dataclasses

import pytest
import torch

from asyncthink import ForkJoinSampler, SamplingParams
from asyncthink.episode.options import Context, JoinMode
from scripted import PROMPTS
from tiny_models import organizer

PARAMS = SamplingParams(temperature=1.0, max_tokens=60, seed=11)


@pytest.fixture(scope="module")
def parts():
    return organizer()


def build(parts, **options):
    model, tok = parts
    return ForkJoinSampler(model, tok, prompts=PROMPTS, num_pages=2000, **options)


def interesting(episodes):
    return [e for e in episodes if e.joins and any(t.returned for t in e.traces[1:])]


@pytest.mark.parametrize("context", Context)
def test_logprobs_equal_plain_eager(parts, context):
    model, _ = parts
    s = build(parts, context=context, join="exact")
    episodes = s.generate(["q"] * 24, [PARAMS.with_seed(k) for k in range(24)])
    assert interesting(episodes)
    for episode in episodes:
        for trace in episode.traces:
            before = episode.traces[trace.parent].tokens[: trace.fork_at] if trace.parent is not None else []
            context_tokens = (before if context == "shared" else []) + trace.tokens
            with torch.no_grad():
                logp = torch.log_softmax(model(torch.tensor([context_tokens])).logits[0].double(), -1)
            first = len(context_tokens) - len(trace.tokens)
            for k, drawn in enumerate(trace.sampled):
                if drawn:
                    assert trace.logprobs[k] == pytest.approx(float(logp[first + k - 1, trace.tokens[k]]), abs=1e-4)


@pytest.mark.parametrize("join", JoinMode)
@pytest.mark.parametrize("context", Context)
def test_a_seed_gives_the_same_episode_in_any_batch(parts, context, join):
    s = build(parts, context=context, join=join)
    batch = s.generate(["q"] * 16, [PARAMS.with_seed(k) for k in range(16)])
    for k in (0, 7, 15):
        (alone,) = s.generate(["q"], PARAMS.with_seed(k))
        assert [t.tokens for t in alone.traces] == [t.tokens for t in batch[k].traces]
        for a, b in zip(alone.traces, batch[k].traces, strict=True):
            assert a.logprobs == pytest.approx(b.logprobs, abs=1e-5)
    assert len({tuple(e.traces[0].tokens) for e in batch}) > 1
    s.cache.check()
    s.prefixes.clear()
    assert s.cache.used_pages == 0


def test_append_and_link_compute_the_same_thing(parts):
    joined = 0
    appended = build(parts, join="append").generate(["q"] * 32, [PARAMS.with_seed(k) for k in range(32)])
    linked = build(parts, join="link").generate(["q"] * 32, [PARAMS.with_seed(k) for k in range(32)])
    for a, b in zip(appended, linked, strict=True):
        assert [t.tokens for t in a.traces] == [t.tokens for t in b.traces]
        for x, y in zip(a.traces, b.traces, strict=True):
            assert x.logprobs == pytest.approx(y.logprobs, abs=1e-4)
        joined += any(j.source for t in a.traces for j in t.joins)
    assert joined


def test_a_live_module_keeps_its_weights_and_configs(parts):
    model, _ = parts
    before = {name: p.data_ptr() for name, p in model.named_parameters()}
    implementation, tokens = model.config._attn_implementation, torch.tensor([[1, 2, 3]])
    plain = model(tokens).logits
    s = build(parts)
    s.generate(["q"], PARAMS)
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == before
    assert s.decoder.model is model and model.config._attn_implementation == implementation
    assert torch.equal(model(tokens).logits, plain) and all(p.grad is None for p in model.parameters())

    before_change = build(parts).generate(["q"], dataclasses.replace(PARAMS, temperature=0.0))[0]
    with torch.no_grad():
        model.lm_head.weight.neg_()
    try:
        s.refresh()
        other = s.generate(["q"], dataclasses.replace(PARAMS, temperature=0.0))[0]
    finally:
        with torch.no_grad():
            model.lm_head.weight.neg_()
    assert other.traces[0].tokens != before_change.traces[0].tokens
