"""Arguments of `sample`, what its filters leave, and the comparison with the reference."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import torch
from hypothesis import settings
from torch import Tensor

from asyncthink_kernels import sample, use_backend
from asyncthink_kernels.testing import compare, moved
from targets import Target, forced, targets

MANY = settings(max_examples=50, deadline=None)


def build(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    seed: int = 0,
) -> dict[str, Any]:
    """Arguments for rows that share everything but their positions."""
    N = logits.shape[0]
    return {
        "logits": logits,
        "seeds": torch.full((N,), seed),
        "agents": torch.zeros(N, dtype=torch.int64),
        "positions": torch.arange(N),
        "temperature": torch.full((N,), temperature),
        "top_k": torch.full((N,), top_k, dtype=torch.int32),
        "top_p": torch.full((N,), top_p),
        "min_p": torch.full((N,), min_p),
    }


def emulated(target: Target) -> bool:
    """Where every draw takes milliseconds."""
    return target.backend == "cuda" and target.device == "cpu"


def on(target: Target, arguments: dict[str, Any]) -> tuple[Tensor, Tensor]:
    tokens, logprobs = sample(**moved(arguments, target.device))
    assert tokens.dtype == torch.int64 and logprobs.dtype == torch.float32
    return tokens.cpu(), logprobs.cpu()


def wanted(arguments: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The tokens of the reference, with their log-probabilities in a float64 softmax."""
    with use_backend("reference"):
        tokens, _ = sample(**arguments)
    heat = arguments["temperature"].double()
    heat[heat == 0] = 1
    exact = torch.log_softmax(arguments["logits"].double() / heat[:, None], dim=-1)
    return tokens, exact.gather(1, tokens[:, None])[:, 0]


def same_as_the_reference(target: Target, arguments: dict[str, Any]) -> Tensor:
    """The tokens; the log-probability also of a float64 softmax."""
    tokens, logprobs = on(target, arguments)
    want, exact = wanted(arguments)
    assert torch.equal(tokens, want)
    compare(logprobs, exact, limit=3e-7, what="logprobs")
    return tokens


def same_everywhere(arguments: dict[str, Any], few: int) -> Tensor:
    """The tokens, and their log-probabilities, on every target; an emulator draws the first ``few`` rows alone.

    What is wanted takes far longer than what a kernel draws: here it is made once for all targets.
    """
    want, exact = wanted(arguments)
    for target in targets("sample"):
        rows = few if emulated(target) else len(want)
        with forced(target):
            tokens, logprobs = on(target, {name: value[:rows] for name, value in arguments.items()})
        assert torch.equal(tokens, want[:rows]), target
        compare(logprobs, exact[:rows], limit=3e-7, what=f"logprobs on {target}")
    return want


def kept_by_a_sort(x: list[float], temperature: float, top_k: int, top_p: float, min_p: float) -> set[int]:
    """What the filters leave, from float64 probabilities, and fractions where they are equal to the last bit."""
    heat, top_p, min_p = torch.tensor([temperature, top_p, min_p]).tolist()  # rounded to float32
    p = [Fraction(share) for share in torch.softmax(torch.tensor(x).double() / heat, 0).tolist()]
    order = sorted(range(len(x)), key=lambda v: (-x[v], v))
    order = order[: top_k or None]
    if top_p < 1:
        total, mass, count = sum(p[v] for v in order), Fraction(0), 0
        while count < len(order) and (count == 0 or mass < Fraction(top_p) * total):
            mass += p[order[count]]
            count += 1
        order = order[:count]
    return {v for v in order if p[v] > 0 and p[v] >= Fraction(min_p) * max(p)}
