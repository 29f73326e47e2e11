"""One step over branches with a cache object each: one branch after the other.

Letters: T rows (tokens) of a step, N rows whose logits are wanted, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from asyncthink.model.copied_branch import CopiedBranch, CopiedPlan
from asyncthink.model.copied_cache import CopiedCache
from asyncthink.model.own_cache import Own, OwnCalls

_ROWS = 1024  # of a call that computes tokens again


def run_step(cache: CopiedCache, calls: OwnCalls, plan: CopiedPlan, tokens: list[int], rows: list[int]) -> Tensor:
    """Compute the plan's T ``tokens`` -> logits [N,V] of ``rows`` [N], in their order.

    An error in one branch is raised; the plan's branches then have the tokens that they had before the plan, except
    those that were done.
    """
    parts: list[Tensor] = []
    place: dict[int, int] = {}  # of a row of the step in the logits that were kept
    start = kept = 0
    for branch, count in plan.work:
        stop = start + count
        wanted = [row for row in rows if start <= row < stop]
        keep = stop - min(wanted) if wanted else 0
        try:
            logits = _advance(cache, calls, branch, tokens[start:stop], keep)
        except BaseException:
            cache.lost(plan, branch)
            raise
        parts.append(logits)
        place |= {row: kept + row - (stop - keep) for row in wanted}
        start, kept = stop, kept + keep
    index = torch.tensor([place[row] for row in rows], dtype=torch.int64, device=parts[0].device)
    return torch.cat(parts)[index]


def _advance(cache: CopiedCache, calls: OwnCalls, branch: CopiedBranch, tokens: list[int], keep: int) -> Tensor:
    """Compute what the branch lacks of its earlier tokens, then the new ones -> logits [keep,V] of the last ones."""
    held = branch.held
    assert held is not None
    own: Own | None = held.cache
    before = list(held.tokens)
    for first in range(0, len(branch.again), _ROWS):
        part = branch.again[first : first + _ROWS]
        own, _ = calls.extend(own, before, part, 0)
        before += part
    own, logits = calls.extend(own, before, tokens, keep)
    cache.entered(branch, own, tokens)
    return logits
