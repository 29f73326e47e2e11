"""Whole episodes on the Triton kernels, in the static buffers of captured steps: the tokens of the other backends."""

from __future__ import annotations

import pytest
import torch

from asyncthink import ForkJoinSampler, SamplingParams
from asyncthink_kernels import backends_for, use_backend
from scripted import PROMPTS
from tiny_models import organizer

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.skipif("triton" not in backends_for("tree_attention", DEVICE), reason="Triton cannot run here")


def test_tokens_of_an_episode() -> None:
    """An episode that forks, joins by links and answers, on pages small enough to fork inside of them."""
    model, tokenizer = organizer(layers=1)  # each takes the interpreter half a second a step
    model = model.to(DEVICE)
    options = {"prompts": PROMPTS, "join": "link", "num_pages": 400, "page_size": 8}
    params = SamplingParams(temperature=0.0, max_tokens=16)
    with use_backend("reference"):
        (want,) = ForkJoinSampler(model, tokenizer, **options).generate(["q"], params)
    with use_backend("triton"):
        sampler = ForkJoinSampler(model, tokenizer, graphs=True, **options)
        (got,) = sampler.generate(["q"], params)
    assert want.joins and any(trace.returned for trace in want.traces[1:])
    assert [trace.tokens for trace in got.traces] == [trace.tokens for trace in want.traces]
    for trace, other in zip(got.traces, want.traces, strict=True):
        assert trace.logprobs == pytest.approx(other.logprobs, abs=1e-4)
    sampler.prefixes.clear()
    assert sampler.cache.used_pages == 0
