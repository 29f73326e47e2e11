"""Drawing: the random numbers, the distribution, the filters, and that rows do not touch each other."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncthink.sampling import SamplingParams, draw, uniform

GREEDY = SamplingParams(temperature=0.0)


def philox(key, counter):
    """Philox-4x32-10 in plain integers, from the paper's description (Salmon et al., SC 2011, section 3.3)."""
    c, (k0, k1) = list(counter), key
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k0, p1 % 2**32, (p0 >> 32) ^ c[3] ^ k1, p0 % 2**32]
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return c


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_uniform_is_philox(seed, agent, position):
    words = philox((seed % 2**32, seed >> 32), (position, agent, 0, 0))
    assert uniform([seed], [agent], [position])[0] == ((words[0] << 21) ^ (words[1] >> 11)) / 2**53


def test_philox_known_answer():
    # Random123's kat_vectors: philox4x32-10, counter and key all ones.
    assert philox((0xFFFFFFFF,) * 2, (0xFFFFFFFF,) * 4) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


def test_uniform_is_uniform():
    u = uniform([3] * 4096, [1] * 4096, list(range(4096)))
    assert u.min() >= 0 and u.max() < 1 and len(set(u.tolist())) == 4096
    counts, _ = np.histogram(u, 16, (0, 1))
    assert ((counts - 256) ** 2 / 256).sum() < 37.7  # chi-square, 15 degrees of freedom, p = 0.001


def test_distribution_and_logprob():
    logits = torch.tensor([0.3, -1.0, 2.0, 0.0, 1.0])
    n, params = 20_000, SamplingParams(temperature=0.7)
    tokens, logprobs = draw(logits.expand(n, -1), [params] * n, uniform([5] * n, [0] * n, list(range(n))))
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
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    keep = allowed(logits, params)
    u = np.linspace(0, 1, 512, endpoint=False)
    tokens, _ = draw(logits.expand(len(u), -1), [params] * len(u), u)
    assert set(tokens) <= keep
    p = torch.softmax(logits.double() / temperature, 0)
    share = {v: float(p[v] / sum(p[w] for w in keep)) for v in keep}
    assert {v for v in keep if share[v] > 2 / 512} <= set(tokens)


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
    u = uniform(range(6), range(6), range(6))
    tokens, logprobs = draw(logits, params, u)
    for r in range(6):
        assert draw(logits[r : r + 1], params[r : r + 1], u[r : r + 1]) == ([tokens[r]], [logprobs[r]])
    assert tokens[0] == int(logits[0].argmax())


def test_masked_logits_are_never_drawn():
    logits = torch.full((2, 4), -torch.inf)
    logits[:, 1] = 0.0
    assert draw(logits, [SamplingParams()] * 2, np.array([0.0, 1 - 2**-53]))[0] == [1, 1]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_refuses_logits_that_are_not_finite(bad):
    logits = torch.zeros(3, 4)
    logits[2, 1] = bad
    with pytest.raises(ValueError, match=r"logits: expected finite values, got maximum .* in row 2"):
        draw(logits, [GREEDY] * 3, np.zeros(3))


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", -1.0), ("temperature", float("nan")), ("top_k", -1), ("top_p", 0.0), ("top_p", 1.1),
     ("min_p", -0.1), ("max_tokens", 0), ("max_episode_tokens", 0), ("stop", "x"), ("stop", ("",)), ("seed", -1),
     ("timeout", 0.0)],
)  # fmt: skip
def test_refuses_params_out_of_range(name, value):
    with pytest.raises(ValueError, match=f"^{name}: expected .*, got"):
        SamplingParams(**{name: value})
