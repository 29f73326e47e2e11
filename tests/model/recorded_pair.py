"""Two decoders of one model, of which one records its steps: :class:`Pair`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from asyncthink.model.decoder import Decoder
from tiny_models import tokens

SIZES: dict[str, Any] = {"page_size": 4, "num_pages": 80, "chunk": 8}


class Pair:
    """A decoder that records and one that does not, which go through the same steps; all is poisoned before."""

    def __init__(self, model: nn.Module, **options: Any) -> None:
        self.model = model
        self.recording = Decoder(model, **SIZES, **options)
        self.plain = Decoder(model, record=False, **SIZES, **options)
        self.decoders = self.recording, self.plain
        self.branches: list[list[Any]] = [[], []]
        self._seed = 0
        for decoder in self.decoders:
            decoder.storage.poison()
            if decoder.states is not None:
                decoder.states.poison()
        self.root()

    def each(self) -> list[tuple[Any, list[Any]]]:
        """The decoders, each with its branches."""
        return list(zip(self.decoders, self.branches, strict=True))

    def root(self) -> None:
        for decoder, branches in self.each():
            branches.append(decoder.cache.root())

    def fork(self, of: int, at: int | None = None) -> None:
        for decoder, branches in self.each():
            branches.append(decoder.cache.fork(branches[of], at=at))

    def release(self, number: int) -> None:
        for decoder, branches in self.each():
            decoder.cache.release(branches[number])

    def join(self, dst: int, src: int, start: int, stop: int, mode: str) -> None:
        for decoder, branches in self.each():
            decoder.join(branches[dst], branches[src], start, stop, mode)

    def step(self, *work: tuple[int, int], rows: list[int] | None = None) -> Tensor:
        """The same tokens through both -> the same logits, K, V and states, to the last bit."""
        count = sum(new for _, new in work)
        self._seed += 1
        wanted = list(range(count)) if rows is None else rows
        got = []
        for decoder, branches in self.each():
            plan = decoder.cache.plan([(branches[number], new) for number, new in work])
            got.append(decoder.forward(tokens(count, self._seed), plan, wanted))
        assert torch.equal(*got)
        torch.testing.assert_close(*map(_held, self.decoders), rtol=0, atol=0, equal_nan=True)
        return got[0]

    def decode(self, steps: int, *branches: int) -> None:
        for _ in range(steps):
            self.step(*((branch, 1) for branch in branches))

    @property
    def programs(self) -> int:
        assert self.recording.recorded is not None
        return len(self.recording.recorded.programs)


def _held(decoder: Decoder) -> list[Tensor]:
    """K, V and states."""
    states = decoder.states.tensors.values() if decoder.states is not None else ()
    return [*(tensor for group in decoder.storage.groups for tensor in (group.k, group.v)), *states]
