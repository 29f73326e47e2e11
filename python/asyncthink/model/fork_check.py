"""The last of three checks at load: a small packed fork must give the logits of the model's own attention.

Letters: T tokens of a branch, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from asyncthink.model.attention import PagedAttention
from asyncthink.model.checks import one_line, probe_tokens
from asyncthink.model.hook import DecoderError, HookedModel
from asyncthink.model.layers import Layers
from asyncthink.model.tolerance import limit
from asyncthink_kernels.cache import Branch, KVStorage, TreeCache

_SHARED, _AHEAD, _LENGTH = 3, 5, 7  # the child shares 3 tokens with a parent of 5; both end with 7 tokens


def check_packed_fork(hooked: HookedModel, layers: Layers, kind: str, page_size: int) -> None:
    """DecoderError unless a parent and a child forked from its middle, packed in one step, get the model's own logits.

    The model's own logits come from a call with token ids alone, so that it chooses the positions itself, and with
    eager attention, which every model has.

    The check uses a small cache of its own, poisoned with NaN. Parent and child end in the same token, so their last
    rows of logits differ only by their contexts (:func:`.tolerance.limit`).
    """
    device = layers.positions.device
    a, b, c, d, e, f, g, h, last = probe_tokens(hooked.model, 9)
    parent, child = [a, b, c, d, e, f, last], [a, b, c, g, h, d, last]
    try:
        alone = [hooked.call(torch.tensor(tokens, device=device), "eager").float() for tokens in (parent, child)]
    except Exception as error:
        raise DecoderError(f"{kind} cannot run its own eager attention to compare with: {one_line(error)}") from error
    try:
        got = _packed(hooked, layers, page_size, parent, child)
    except ValueError as error:
        raise DecoderError(f"{kind} has attention that our ops do not serve: {error}") from error
    except Exception as error:
        raise DecoderError(f"{kind} cannot run a packed fork on our attention: {one_line(error)}") from error
    if not all(logits.isfinite().all() for logits in alone):
        raise DecoderError(f"{kind} gives logits that are not finite when it is called with token ids alone")
    expected = torch.cat([alone[0], alone[1][_SHARED:]])
    errors = (got - expected).norm(dim=-1) / expected.norm(dim=-1)
    most = limit(layers.dtype, alone[0][-1], alone[1][-1])
    worst = errors.max().item()
    if not worst <= most:
        raise DecoderError(
            f"{kind} gives other logits for branches packed into one step than for each alone "
            f"(relative difference {worst:.1e}, expected at most {most:.1e}): something besides attention mixes "
            "tokens, or its attention or its positions work in a way that is not known here"
        )


def _packed(hooked: HookedModel, layers: Layers, page_size: int, parent: list[int], child: list[int]) -> Tensor:
    """Logits of the parent's tokens, then of the child's own."""
    device = layers.positions.device
    pages = -(-_LENGTH // page_size) + -(-(_LENGTH - _SHARED) // page_size)
    cache = TreeCache(pages, page_size, chunk=page_size)
    storage = KVStorage(layers.shapes, pages, page_size, layers.dtype, device)
    storage.poison()
    attention = PagedAttention([call.module for call in layers.calls], storage, None)

    def step(tokens: list[int], *work: tuple[Branch, int]) -> Tensor:
        plan = cache.plan(work)
        taken = attention.step(plan, torch.tensor(tokens, device="cpu"))
        rows = torch.arange(len(tokens), device=device)
        return hooked.run(taken, taken.tokens, taken.positions, rows).float()

    root = cache.root()
    ahead = step(parent[:_AHEAD], (root, _AHEAD))
    fork = cache.fork(root, at=_SHARED)
    more = _LENGTH - _AHEAD
    both = step(parent[_AHEAD:] + child[_SHARED:], (root, more), (fork, _LENGTH - _SHARED))
    return torch.cat([ahead, both])
