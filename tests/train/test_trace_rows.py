"""Models that cannot be packed train one row a trace: the logits, gradients and log-probabilities of each alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from asyncthink import ForkJoinSampler, SamplingParams
from asyncthink.model.rotary import NotRotaryError
from asyncthink.train.logprobs import logits_of, token_logprobs
from asyncthink.train.packed_attention import ATTENTION, use_packed_attention
from asyncthink.train.packing import IGNORED, Row, pack
from asyncthink.train.rows import rows
from scripted import PROMPTS
from tiny_fallbacks import taught_own, tiny_own
from tiny_models import tiny

TREE = [
    Row("organizer", "shared", (5, 6, 7, 8, 9), (False, False, True, True, True)),
    Row("worker", "shared", (3, 9, 4), (False, True, True), parent=0, fork_at=2),
]
CONTEXTS = [[5, 6, 7, 8, 9], [5, 6, 3, 9, 4]]


def unpackable(kind: str) -> nn.Module:
    return tiny("gpt_oss") if kind == "gpt_oss" else tiny_own(kind)


@pytest.mark.parametrize(("kind", "why"), [("falcon", "Falcon"), ("bloom", "Bloom"), ("gpt_oss", "uses s_aux")])
def test_a_tree_gets_the_logits_of_its_traces(kind: str, why: str) -> None:
    model = unpackable(kind)
    attention = model.config._attn_implementation
    reason = use_packed_attention(model)
    assert reason is not None
    assert reason.startswith("rows: one a trace, as ")
    assert why in reason
    assert model.config._attn_implementation == attention != ATTENTION
    with torch.no_grad():
        logits = logits_of(model, pack([TREE], 100))[0]
        own = [model(input_ids=torch.tensor([context])).logits[0] for context in CONTEXTS]
    expected = [part[-len(row.tokens) :] for part, row in zip(own, TREE, strict=True)]
    torch.testing.assert_close(logits, torch.cat(expected), atol=2e-4, rtol=2e-4)


def test_sampler_and_trainer_agree() -> None:
    model, tok = taught_own("falcon")
    sampler = ForkJoinSampler(model, tok, prompts=PROMPTS, num_pages=2000, fallback=True)
    params = SamplingParams(temperature=0.8, max_tokens=40)
    episodes = sampler.generate(["q"] * 12, [params.with_seed(k) for k in range(12)])
    assert any(episode.joins for episode in episodes)
    use_packed_attention(model)
    batch = pack([rows(episode) for episode in episodes], 10**9)
    scores = token_logprobs(model, batch, 0.8)
    traces = [trace for episode in episodes for trace in episode.traces]
    drawn = [p for trace in traces for p, own in zip(trace.logprobs, trace.sampled, strict=True) if own]
    torch.testing.assert_close(scores[batch.labels[0] != IGNORED], torch.tensor(drawn), atol=1e-4, rtol=0)
    scores.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_what_rows_cannot_do_is_refused() -> None:
    with pytest.raises(NotRotaryError, match=r"cannot be packed, as .*: expected exact joins alone"):
        use_packed_attention(tiny_own("falcon"), moves=True)
    with pytest.raises(ValueError, match="XLMWithLMHeadModel is not causal"):
        use_packed_attention(tiny_own("xlm"))
