"""Every causal-LM type of the installed transformers is served with its own logits, or refused with a reason."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from asyncthink.model import Decoder
from survey_models import context
from tiny_models import feed


def alone(model: nn.Module, tokens: Tensor) -> Tensor:
    """tokens [T] -> logits [T,V] of the model as its users call it."""
    with torch.no_grad():
        return model(input_ids=tokens[None]).logits[0].float()


def largest_difference(decoder: Decoder) -> float:
    """Of logits of an organizer, a worker, its worker and another episode from the model's own, relative by row."""
    model, cache = decoder.model, decoder.cache
    decoder.storage.poison()
    trunk, own, worker, below = (context(model, count, seed) for seed, count in enumerate((24, 8, 12, 6)))
    root, other = cache.root(), cache.root()
    (first,) = feed(decoder, (root, trunk[:11]))
    second, episode = feed(decoder, (root, trunk[11:]), (other, own))
    child = cache.fork(root, at=21)
    organizer, forked = feed(decoder, (root, own[:3]), (child, worker[:7]))
    grandchild = cache.fork(child, at=26)
    parts = [organizer], [forked], []
    for i in range(5):
        work = (root, own[3 + i : 4 + i]), (child, worker[7 + i : 8 + i]), (grandchild, below[i : i + 1])
        for part, logits in zip(parts, feed(decoder, *work), strict=True):
            part.append(logits)
    (joined,) = feed(decoder, (root, worker))  # an exact join
    pairs = [
        (torch.cat([first, second, *parts[0], joined]), alone(model, torch.cat([trunk, own, worker]))),
        (episode, alone(model, own)),
        (torch.cat(parts[1]), alone(model, torch.cat([trunk[:21], worker]))[21:]),
        (torch.cat(parts[2]), alone(model, torch.cat([trunk[:21], worker[:5], below[:5]]))[26:]),
    ]
    return max(((got - own).norm(dim=-1) / own.norm(dim=-1)).max().item() for got, own in pairs)
