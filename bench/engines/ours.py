"""asyncthink's Decoder, by default with its defaults: forks share the prefix, a step is one packed pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from asyncthink.model.decoder import Decoder
from asyncthink_kernels.cache import Branch
from engines import MOST_BRANCHES, NEW

CHUNK = 1024  # rows of one step of the prefill, as the sampler's


class Ours:
    def __init__(self, model: nn.Module, longest: int, **options: Any) -> None:
        """``options`` are those of the Decoder."""
        self.note = "What torch.compile takes at first is not timed." if options.get("compile") else ""
        pages = longest // 16 + MOST_BRANCHES * (NEW // 16 + 2)
        self.decoder = Decoder(model, num_pages=pages, **options)
        self.root: Branch | None = None
        self.branches: list[Branch] = []

    def prefill(self, tokens: Sequence[int]) -> None:
        self.branch(0)
        if self.root is not None:
            self.decoder.cache.release(self.root)
        self.root = self.decoder.cache.root()
        for begin in range(0, len(tokens), CHUNK):
            part = torch.tensor(tokens[begin : begin + CHUNK])
            self.decoder.forward(part, self.decoder.cache.plan([(self.root, len(part))]), [len(part) - 1])

    def branch(self, count: int) -> None:
        for branch in self.branches:
            self.decoder.cache.release(branch)
        self.branches = [self.decoder.cache.fork(self.root) for _ in range(count) if self.root is not None]

    def step(self, tokens: Sequence[int]) -> Sequence[Tensor]:
        plan = self.decoder.cache.plan([(branch, 1) for branch in self.branches])
        return list(self.decoder.forward(torch.tensor(tokens), plan, list(range(len(tokens)))))

    def close(self) -> None:
        del self.decoder, self.branches, self.root
