"""sample: one token per row of logits, the same on every device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from asyncthink_kernels import dispatch
from asyncthink_kernels._checks import INT32, INT64, Checks, no_grad
from asyncthink_kernels.arguments import Sample
from asyncthink_kernels.ops._library import register

#: Tokens that a row may have: the sum of their weights fits 63 bits.
MAX_TOKENS = 2**23 - 1
_LOGITS = (torch.float32, torch.bfloat16, torch.float16)
_FLOAT32 = (torch.float32,)


def sample(
    logits: Tensor,
    seeds: Tensor,
    agents: Tensor,
    positions: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
) -> tuple[Tensor, Tensor]:
    """Draw a token from each row: the first v with ``w_0 + ... + w_v > floor(u W)``, W the sum of all weights w.

    ``w_v = trunc(2**40 exp((l_v - max l) / temperature))``, or 0 where a filter leaves v out, is an integer, and u is
    a fraction of 53 bits: Philox-4x32-10 with key seed and counter (position, agent, 0, 0). So the token is the same
    on every device, for any number of threads and any vector width, and depends on nothing but its own row.

    This is sampling from ``softmax(l / temperature)`` in float32: a weight is right to one unit in the last place of
    a float for the rounded ``(l_v - max l) / temperature``, and cutting it off takes less than 2**-40 of the most
    likely token's weight away. A token less likely than that by its ratio is never drawn.

    Filters, in this order, each among what the one before left; tokens are ordered by logit, equal ones by index,
    lower first:

    - top-k keeps the first k;
    - top-p keeps tokens while the weight before them is below ``top_p * W``;
    - min-p keeps tokens with ``w >= min_p * 2**40``, the weight of the most likely one.

    Args:
        logits: [N, V], 1 <= V < 2**23; float32, bfloat16 or float16; last dimension contiguous. -inf is never drawn.
        seeds: [N] int64, of which all 64 bits count.
        agents: [N] int64.
        positions: [N] int64.
        temperature: [N] float32, finite and >= 0; 0 takes the largest logit, the first of equal ones.
        top_k: [N] int32, >= 0; 0 keeps all.
        top_p: [N] float32 in (0, 1]; 1 keeps all.
        min_p: [N] float32 in [0, 1]; 0 keeps all.

    All but logits are contiguous.

    Returns:
        tokens [N] int64 and their log-probabilities [N] float32: natural, under ``softmax(logits / temperature)``
        before the filters (temperature 1 for a greedy row): what a trainer recomputes from the logits.

    Raises:
        ValueError: a shape, dtype, device or stride that does not fit, a value out of its range, a row of logits that
            holds NaN or whose maximum is not finite. On a GPU nothing waits for values: such a row's token is -1 and
            its log-probability NaN; under ``ASYNCTHINK_CHECK=1`` ranges are checked there too.

    Source: Philox is Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011); min-p is arXiv 2407.01082.

    >>> import torch
    >>> from asyncthink_kernels import sample
    >>> logits = torch.tensor([[0.0, 2.0, 1.0]]).expand(2, 3)
    >>> number, one = torch.tensor([7, 7]), torch.ones(2)
    >>> greedy = torch.tensor([0.0, 1.0])
    >>> tokens, logprobs = sample(
    ...     logits, number, number, number, greedy, torch.tensor([0, 1], dtype=torch.int32), one, 0 * one
    ... )
    >>> tokens.tolist(), round(logprobs[0].item(), 4)
    ([1, 1], -0.4076)
    """
    no_grad("sample", logits=logits, temperature=temperature, top_p=top_p, min_p=min_p)
    drawn: tuple[Tensor, Tensor] = _op(logits, seeds, agents, positions, temperature, top_k, top_p, min_p)
    return drawn


def _outputs(args: Sample) -> tuple[Tensor, Tensor]:
    """Check everything but values; allocate tokens and log-probabilities."""
    check = Checks("sample", args.logits.device)
    check.tensor("logits", args.logits, ("N", "V"), _LOGITS)
    V = args.logits.shape[1]
    check.that(1 <= V <= MAX_TOKENS, f"logits must have V in [1, {MAX_TOKENS}], got V={V}")
    for name in ("seeds", "agents", "positions"):
        check.tensor(name, getattr(args, name), ("N",), INT64, dense=True)
    for name in ("temperature", "top_p", "min_p"):
        check.tensor(name, getattr(args, name), ("N",), _FLOAT32, dense=True)
    check.tensor("top_k", args.top_k, ("N",), INT32, dense=True)
    return torch.empty_like(args.seeds), torch.empty_like(args.temperature)


def _run(*given: Any) -> tuple[Tensor, Tensor]:
    args = Sample(*given)
    tokens, logprobs = _outputs(args)
    dispatch.find("sample", args.logits.device.type)(args, tokens, logprobs)
    return tokens, logprobs


def _fake(*given: Any) -> tuple[Tensor, Tensor]:
    return _outputs(Sample(*given))


_op = register(
    "sample(Tensor logits, Tensor seeds, Tensor agents, Tensor positions, Tensor temperature, Tensor top_k, "
    "Tensor top_p, Tensor min_p) -> (Tensor, Tensor)",
    _run,
    _fake,
)
