"""The check at load of a model with its own cache: forks, siblings, cuts and joins must give the model's own logits.

Letters: T tokens of a branch, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from asyncthink.model.checks import one_line, probe_tokens
from asyncthink.model.copied_branch import CopiedBranch
from asyncthink.model.copied_cache import CopiedCache
from asyncthink.model.copied_step import run_step
from asyncthink.model.hook import DecoderError, HookedModel
from asyncthink.model.own_cache import FEEDS, WHOLE, OwnCalls, nbytes
from asyncthink.model.tolerance import difference, limit

_LENGTH = 24  # tokens of the longest context
_TRUNK, _CUT, _OWN = 11, 9, 6  # the parent's first step; where a grandchild begins; tokens that a child writes


class Sizes(NamedTuple):
    """Bytes that a cache takes for each token, and beside them."""

    token: int
    state: int

    def unit(self, page_size: int) -> int:
        """Bytes that a token counts for in pages; with neither, those of the token ids that are kept."""
        return self.token or -(-self.state // page_size) or 8


def choose_feed(hooked: HookedModel, kind: str, most: int | None) -> tuple[OwnCalls, Sizes]:
    """The fastest way of feeding the model that gives its own logits, and what its caches take.

    ``most`` is the longest context of the model, or None. DecoderError where no way does.
    """
    tokens = probe_tokens(hooked.model, min(_LENGTH, most or _LENGTH) + _OWN)
    if len(tokens) < _TRUNK + _OWN + 2:
        raise DecoderError(f"{kind} takes {most} tokens, too few to be checked")
    contexts = _Contexts(tokens)
    try:
        alone = [_alone(hooked, context) for context in contexts]
        head = _alone(hooked, contexts.parent[:_TRUNK])
    except Exception as error:
        raise DecoderError(f"{kind} cannot be called with token ids alone: {one_line(error)}") from error
    if not all(logits.isfinite().all() for logits in alone):
        raise DecoderError(f"{kind} gives logits that are not finite when it is called with token ids alone")
    dtype = next(hooked.model.parameters()).dtype
    most_apart = limit(dtype, alone[0][-1], alone[1][-1])
    apart = difference(head, alone[0][:_TRUNK])
    if not apart <= most_apart:
        raise DecoderError(
            f"{kind} is not a decoder: logits of a token depend on those behind it (relative difference {apart:.1e})"
        )
    why = []
    for feed in FEEDS:
        calls = OwnCalls(hooked, feed)
        try:
            worst = max(difference(got, own) for got, own in zip(_forked(calls, contexts), alone, strict=True))
        except Exception as error:
            why.append(f"{feed}: {one_line(error)}")
            continue
        if worst <= most_apart:
            return calls, Sizes(0, 0) if feed == WHOLE else cache_sizes(calls, contexts.parent)
        why.append(f"{feed}: relative difference {worst:.1e}, expected at most {most_apart:.1e}")
    raise DecoderError(f"{kind} gives other logits with its own cache than without ({'; '.join(why)})")


class _Contexts:
    """A parent, a child that forks it, a grandchild that sees a part of the parent, all with the same last token."""

    def __init__(self, tokens: list[int]) -> None:
        *written, last = tokens
        own, trunk = written[:_OWN], written[_OWN:]
        self.parent = [*trunk, last]
        self.child = [*trunk[:_TRUNK], *own, last]
        self.grandchild = [*trunk[:_CUT], *own[::-1], last]

    def __iter__(self) -> Iterator[list[int]]:
        return iter((self.parent, self.child, self.grandchild))


def _alone(hooked: HookedModel, tokens: list[int]) -> Tensor:
    device = next(hooked.model.parameters()).device
    return hooked.call(torch.tensor(tokens, device=device), None).float()


def _forked(calls: OwnCalls, contexts: _Contexts) -> list[Tensor]:
    """Logits of the parent's, the child's and the grandchild's whole contexts, computed as branches of one cache."""
    parent, child, grandchild = contexts
    cache = CopiedCache(calls, num_pages=8 * len(parent), page_size=1)
    root = cache.root()
    trunk = _step(cache, calls, [(root, parent[:_TRUNK])])[0]
    fork, early = cache.fork(root), cache.fork(root, _CUT)
    rows: list[list[Tensor]] = [[trunk], [trunk], [trunk[:_CUT]]]
    work = [(root, parent[_TRUNK:-2]), (fork, child[_TRUNK:-2]), (early, grandchild[_CUT:-2])]
    for part in (0, 1, 2):  # several tokens of each branch, then two single ones
        if part:
            work = [
                (branch, whole[part - 3 :][:1]) for branch, whole in zip((root, fork, early), contexts, strict=True)
            ]
        for row, logits in zip(rows, _step(cache, calls, work), strict=True):
            row.append(logits)
    return [torch.cat(row).float() for row in rows]


def _step(cache: CopiedCache, calls: OwnCalls, work: list[tuple[CopiedBranch, list[int]]]) -> tuple[Tensor, ...]:
    """One step with the new tokens of each branch -> logits [n,V] of each."""
    counts = [len(new) for _, new in work]
    plan = cache.plan([(branch, count) for (branch, _), count in zip(work, counts, strict=True)])
    tokens = [token for _, new in work for token in new]
    return torch.split(run_step(cache, calls, plan, tokens, list(range(len(tokens)))), counts)


def cache_sizes(calls: OwnCalls, tokens: list[int]) -> Sizes:
    """What a cache grows by for each token, and what it takes beside: calls with half of these tokens, and all."""
    short, whole = len(tokens) // 2, len(tokens)
    small, large = (nbytes(calls.extend(None, [], tokens[:count], 1)[0]) for count in (short, whole))
    token = max(-(-(large - small) // (whole - short)), 0)
    return Sizes(token, max(large - token * whole, 0))
