"""Drawing with sampling parameters: the distribution, the filters, and the independence of rows."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncthink.engine import sampling
from asyncthink.engine.sampling import SamplingParams, draw

GREEDY = SamplingParams(temperature=0.0)


def test_distribution_and_logprob():
    logits = torch.tensor([0.3, -1.0, 2.0, 0.0, 1.0])
    n, params = 20_000, SamplingParams(temperature=0.7, seed=5)
    tokens, logprobs = draw(logits.expand(n, -1), [params] * n, [0] * n, range(n))
    logp = torch.log_softmax(logits.double() / 0.7, 0)
    torch.testing.assert_close(torch.tensor(logprobs).double(), logp[tokens], atol=1e-6, rtol=0)
    expected = logp.exp().numpy() * n
    assert ((np.bincount(tokens, minlength=5) - expected) ** 2 / expected).sum() < 18.5  # 4 degrees, p = 0.001


def allowed(logits, params):
    """The tokens that the filters leave, one row at a time in float64."""
    p = torch.softmax(logits.double() / (params.temperature or 1), 0)
    order = sorted(range(len(p)), key=lambda v: -p[v])
    kept = order[: params.top_k] if params.top_k else order
    total, mass, nucleus = sum(p[v] for v in kept), 0.0, []
    for v in kept:
        if params.top_p < 1 and mass >= params.top_p * total:
            break
        nucleus.append(v)
        mass += p[v]
    return {v for v in nucleus if p[v] >= params.min_p * p[order[0]]}


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 2**32),
    st.sampled_from([0.3, 1.0, 2.5]),
    st.integers(0, 9),
    st.sampled_from([0.05, 0.4, 0.9, 1.0]),
    st.sampled_from([0.0, 0.02, 0.3, 1.0]),
)
def test_filters(seed, temperature, top_k, top_p, min_p):
    logits = torch.randn(8, generator=torch.Generator().manual_seed(seed)) * 2
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)
    keep, n = allowed(logits, params), 4096
    tokens, _ = draw(logits.expand(n, -1), [params] * n, [0] * n, range(n))
    assert set(tokens) <= keep
    p = torch.softmax(logits.double() / temperature, 0)
    share = {v: float(p[v] / sum(p[w] for w in keep)) for v in keep}
    assert {v for v in keep if share[v] > 0.01} <= set(tokens)  # 4096 draws miss one of 1% once in 10^18


def test_rows_are_independent():
    logits = torch.randn(6, 50)
    params = [
        GREEDY,
        SamplingParams(top_k=3),
        SamplingParams(top_p=0.5),
        SamplingParams(min_p=0.2),
        SamplingParams(),
        GREEDY,
    ]
    params = [p.with_seed(seed) for seed, p in enumerate(params)]
    tokens, logprobs = draw(logits, params, range(6), range(6))
    for r in range(6):
        assert draw(logits[r : r + 1], params[r : r + 1], [r], [r]) == ([tokens[r]], [logprobs[r]])
    assert tokens[0] == int(logits[0].argmax())


def test_masked_logits_are_never_drawn():
    logits = torch.full((100, 4), -torch.inf)
    logits[:, 1] = 0.0
    assert draw(logits, [SamplingParams()] * 100, [0] * 100, range(100))[0] == [1] * 100


def test_seeds_are_64_bits():
    logits, seeds = torch.zeros(4, 10_000), [1, 1 + 2**32, 1 + 2**63, 2**64 - 1]
    tokens, _ = draw(logits, [SamplingParams(seed=seed) for seed in seeds], [0] * 4, [0] * 4)
    assert len(set(tokens)) == 4


def test_agents_and_positions_have_streams_of_their_own():
    tokens, _ = draw(torch.zeros(4, 10_000), [SamplingParams()] * 4, [0, 1, 0, 1], [0, 0, 1, 1])
    assert len(set(tokens)) == 4


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_refuses_logits_that_are_not_finite(bad):
    logits = torch.zeros(3, 4)
    logits[2, 1] = bad
    with pytest.raises(ValueError, match=r"logits\b.* finite.*, got maximum .* in row 2"):
        draw(logits, [GREEDY] * 3, [0] * 3, [0] * 3)


def test_a_row_that_a_gpu_could_not_draw_is_an_error(monkeypatch):
    monkeypatch.setattr(sampling, "sample", lambda *_: (torch.tensor([4, -1]), torch.tensor([0.0, torch.nan])))
    with pytest.raises(ValueError, match="logits: expected a finite maximum, got none in row 1"):
        draw(torch.zeros(2, 8), [GREEDY] * 2, [0] * 2, [0] * 2)


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", -1.0), ("temperature", float("nan")), ("temperature", 1e39), ("top_k", -1), ("top_p", 0.0),
     ("top_p", 1e-50), ("top_p", 1.1), ("min_p", -0.1), ("max_tokens", 0), ("max_episode_tokens", 0), ("stop", "x"),
     ("stop", ("",)), ("seed", -1), ("timeout", 0.0)],
)  # fmt: skip
def test_refuses_params_out_of_range(name, value):
    with pytest.raises(ValueError, match=f"^{name}: expected .*, got"):
        SamplingParams(**{name: value})


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16], ids=str)
def test_narrow_logits_draw_what_their_wide_copy_draws(precision: torch.dtype) -> None:
    logits = torch.randn(6, 500, generator=torch.Generator().manual_seed(1)).to(precision)
    params = [SamplingParams(temperature=0.5 * k, top_p=0.9, top_k=40 * k, seed=k) for k in range(6)]
    narrow = draw(logits, params, [0] * 6, range(6))
    assert narrow == draw(logits.float(), params, [0] * 6, range(6)) == draw(logits.double(), params, [0] * 6, range(6))
