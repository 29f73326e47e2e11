"""Decoders with and without static steps, and a history of steps for both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from asyncthink.model.cuda_graphs import StepGraphs
from asyncthink.model.decoder import Decoder
from asyncthink_kernels.cache import Branch
from tiny_models import tokens


def make(model: nn.Module, graphs: bool, **options: Any) -> Decoder:
    decoder = Decoder(model, page_size=4, num_pages=200, chunk=8, graphs=graphs, **options)
    decoder.storage.poison()
    return decoder


def capturable(model: Any) -> Any:
    """The model, its experts (if it has any) computed without a look at how many rows each gets: in float32 torch's
    grouped product fetches these numbers to the host."""
    model.set_experts_implementation("batched_mm")
    return model


def graphs_of(decoder: Decoder) -> StepGraphs:
    assert decoder.graphs is not None
    return decoder.graphs


def history(decoder: Decoder, step: Callable[..., list[Tensor]]) -> list[Tensor]:
    """Prefill, two forks and a link join, with decode steps of 1 to 4 rows between; the logits of all steps."""
    cache = decoder.cache
    ids = iter(tokens(400, 1).split(1))
    found: list[Tensor] = []

    def decode(steps: int, *branches: Branch) -> None:
        for _ in range(steps):
            found.extend(step(decoder, *((branch, next(ids)) for branch in branches)))

    root = cache.root()
    found += step(decoder, (root, tokens(13, 2)))
    decode(3, root)
    workers = [cache.fork(root), cache.fork(root, at=7)]
    decode(6, root, *workers)
    if "link" in decoder.join_modes:
        decoder.join(root, workers[0], 16, 20, "link")
        decode(5, root, *workers)
        third = cache.fork(root)
        decoder.join(root, workers[1], 8, 12, "link")
        decode(3, root, workers[1], third, workers[0])
        cache.release(third)
    decode(2, root)
    for branch in (root, *workers):
        cache.release(branch)
    return found
