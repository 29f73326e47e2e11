"""Log-probabilities of given tokens, without drawing any."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from asyncthink.engine.sampler import ForkJoinSampler
from asyncthink.model.contract import ContextBranch
from asyncthink_kernels.cache import OutOfPages

_ROWS = 256  # of a pass: their logits are [256, V]


class Scores(NamedTuple):
    """For tokens 1.. of T: their natural log-probabilities given those before; the likeliest tokens there, and theirs.

    Each list has T - 1 entries; the first token has none.
    """

    logprobs: list[float]
    best: list[int]
    best_logprobs: list[float]


def score(sampler: ForkJoinSampler, tokens: Sequence[int]) -> Scores:
    """Score tokens at temperature 1, in passes of their own. Kept heads make room. The caller holds the decoder's gate.

    Raises:
        OutOfPages: they do not fit beside what runs.
    """
    scores, decoder, cache = Scores([], [], []), sampler.decoder, sampler.cache
    branch = cache.root()
    try:
        for start in range(0, len(tokens), _ROWS):
            part = tokens[start : start + _ROWS]
            plan = _plan(sampler, branch, len(part))
            following = torch.tensor(tokens[start + 1 : start + len(part) + 1], dtype=torch.int64, device="cpu")
            rows = list(range(len(following)))
            logits = decoder.forward(torch.tensor(list(part), dtype=torch.int64, device="cpu"), plan, rows)
            if not rows:
                break
            logprobs = torch.log_softmax(logits.float(), dim=-1)
            highest, best = logprobs.max(dim=-1)
            scores.logprobs.extend(logprobs.gather(1, following.to(logits.device)[:, None])[:, 0].tolist())
            scores.best.extend(best.tolist())
            scores.best_logprobs.extend(highest.tolist())
    finally:
        cache.release(branch)
    return scores


def _plan(sampler: ForkJoinSampler, branch: ContextBranch, count: int) -> Any:
    while True:
        try:
            return sampler.cache.plan([(branch, count)])
        except OutOfPages:
            if not sampler.prefixes.heads.evict():
                raise
