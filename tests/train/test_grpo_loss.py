"""The GRPO objective: its value and gradient against the formula written out token by token."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asyncthink.episode.records import Episode, Trace
from asyncthink.train.grpo_loss import Objective, grpo_loss

NUMBERS = st.floats(-3, 3)


@given(
    st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS, st.floats(0.1, 2), NUMBERS), min_size=1, max_size=12),
    st.sampled_from([0.0, 0.3]),
)
def test_value_token_by_token(tokens: list[tuple[float, ...]], kl: float) -> None:
    objective = Objective(clip_low=0.2, clip_high=0.3, kl=kl)
    logp, old, advantage, weight, reference = torch.tensor(tokens, dtype=torch.float64).T
    terms = grpo_loss(objective, logp, old, advantage, weight, reference)
    expected = clipped = 0.0
    for now, then, a, w, ref in tokens:
        ratio = math.exp(now - then)
        bounded = min(max(ratio, 0.8), 1.3)
        expected -= w * (min(ratio * a, bounded * a) - kl * (math.exp(ref - now) - (ref - now) - 1))
        clipped += bounded * a < ratio * a
    assert float(terms.loss) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert terms.clipped == clipped
    assert terms.tokens == len(tokens)
    assert terms.off_policy == pytest.approx(sum(abs(t[0] - t[1]) for t in tokens))


def test_on_policy_gradient_is_that_of_the_policy_gradient() -> None:
    """At r = 1 the gradient with respect to logp is -A w."""
    logp = torch.tensor([-1.0, -2.0, -0.5], dtype=torch.float64, requires_grad=True)
    advantage, weight = torch.tensor([1.0, -2.0, 0.5]).double(), torch.tensor([1.0, 0.5, 2.0]).double()
    grpo_loss(Objective(), logp, logp.detach(), advantage, weight).loss.backward()
    torch.testing.assert_close(logp.grad, -advantage * weight)


def test_a_clipped_token_has_no_gradient() -> None:
    logp = torch.tensor([0.0, 0.0], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([-1.0, -1.0], dtype=torch.float64)
    grpo_loss(Objective(), logp, old, torch.tensor([1.0, -1.0]).double(), torch.ones(2).double()).loss.backward()
    assert logp.grad is not None
    assert logp.grad[0] == 0  # gained enough
    assert logp.grad[1] == pytest.approx(math.e)  # the bound is only against gains


def test_kl_is_zero_at_the_reference_and_pulls_towards_it() -> None:
    logp = torch.tensor([-1.0, -1.0, -1.0], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([-1.0, -0.5, -2.0], dtype=torch.float64)
    terms = grpo_loss(Objective(kl=1.0), logp, logp.detach(), torch.zeros(3), torch.ones(3), reference)
    terms.loss.backward()
    assert logp.grad is not None
    assert logp.grad[0] == 0
    assert logp.grad[1] < 0 < logp.grad[2]  # descent raises the second and lowers the third


def test_an_entropy_bonus_raises_entropy_and_ratios_are_summed() -> None:
    logp, old = torch.tensor([-1.0, -2.0]).double(), torch.tensor([-1.0, -1.0]).double()
    entropy = torch.tensor([0.5, 0.7], dtype=torch.float64, requires_grad=True)
    weights = torch.tensor([1.0, 2.0]).double()
    terms = grpo_loss(Objective(entropy=0.1), logp, old, torch.zeros(2).double(), weights, entropy=entropy)
    terms.loss.backward()
    torch.testing.assert_close(entropy.grad, -0.1 * weights)
    assert terms.entropy == pytest.approx(1.2)
    assert (terms.ratio, terms.ratio_squared) == (pytest.approx(1 + math.exp(-1)), pytest.approx(1 + math.exp(-2)))


def episode(*drawn: int) -> Episode:
    made = Episode("q", "asyncthink")
    for agent, count in enumerate(drawn):
        trace = Trace(agent, "worker" if agent else "organizer")
        trace.add(1, False, 0.0, 0)
        for _ in range(count):
            trace.add(2, True, -0.1, 0)
        made.traces.append(trace)
    return made


@pytest.mark.parametrize("normaliser", ["token", "episode", "constant"])
def test_normalisers(normaliser: str) -> None:
    """All weights of a step over the divisor: 1 a step for means, sum / constant for the constant one."""
    episodes = [episode(3, 2), episode(5)]
    objective = Objective(normaliser=normaliser, constant=20.0)  # type: ignore[arg-type]
    total = sum(w * e.total_tokens for w, e in zip(objective.weights(episodes), episodes, strict=True))
    share = total / objective.divisor(episodes)
    assert share == pytest.approx(10 / 20 / 2 if normaliser == "constant" else 1)


def test_what_is_refused() -> None:
    two, three = torch.zeros(2), torch.zeros(3)
    with pytest.raises(ValueError, match=r"advantages: expected shape \[2\], got \[3\]"):
        grpo_loss(Objective(), two, two, three, two)
    with pytest.raises(ValueError, match=r"reference_logprobs: expected a tensor for a KL weight of 0\.1, got None"):
        grpo_loss(Objective(kl=0.1), two, two, two, two)
    with pytest.raises(ValueError, match=r"entropy: expected a tensor for an entropy weight of 0\.1, got None"):
        grpo_loss(Objective(entropy=0.1), two, two, two, two)
    for name in ("clip_low", "clip_high", "kl", "entropy"):
        with pytest.raises(ValueError, match=f"{name}: expected at least 0"):
            Objective(**{name: -0.1})
        with pytest.raises(ValueError, match=f"{name}: expected at least 0, got nan"):
            Objective(**{name: float("nan")})
    with pytest.raises(ValueError, match="normaliser: expected one of token, episode, constant"):
        Objective(normaliser="x")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="constant: expected more than 0"):
        Objective(constant=0)
