"""Prompt heads: what stands before the question or sub-query in a template is cached once and shared by all agents."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

from asyncthink.prompts import PromptFormat
from asyncthink.text import Codec

if TYPE_CHECKING:
    from asyncthink.model import Decoder
    from asyncthink_kernels.cache import Branch


class RoleHeads:
    """Encodes prompts, and keeps for each role a branch that holds its constant head.

    A template is encoded in two pieces, the head before its first slot and the filled rest, whether or not the head is
    cached: so the tokens of a prompt never depend on what ran before. Heads are computed by a forward pass of their own
    (not beside an agent), so the K/V that agents branch from is always the same.
    """

    def __init__(self, prompts: PromptFormat, codec: Codec, decoder: Decoder) -> None:
        self._prompts, self._codec, self._decoder = prompts, codec, decoder
        self._branches: dict[str, Branch] = {}

    def encode(self, name: str, **slots: str) -> list[int]:
        """Tokens of template ``name`` with its slots filled."""
        head, tail = self._prompts.split(name, **slots)
        return self._codec.encode(head) + self._codec.encode(tail)

    def prepare(self, names: Iterable[str]) -> None:
        """Compute the heads of these templates that are not in the cache yet. Raises OutOfPages."""
        for name in names:
            head = self._codec.encode(self._prompts.split(name)[0])
            if head and name not in self._branches:
                self._branches[name] = self._prefill(head)

    def begin(self, name: str, **slots: str) -> tuple[Branch, list[int]]:
        """A new branch that holds the prepared head of template ``name``, and all tokens of the filled template."""
        cache, head = self._decoder.cache, self._branches.get(name)
        return cache.root() if head is None else cache.fork(head), self.encode(name, **slots)

    def clear(self) -> None:
        """Give the heads' pages back; they are computed again when needed."""
        for branch in self._branches.values():
            self._decoder.cache.release(branch)
        self._branches.clear()

    def _prefill(self, tokens: list[int]) -> Branch:
        cache = self._decoder.cache
        branch = cache.root()
        try:
            self._decoder.forward(torch.tensor(tokens, device="cpu"), cache.plan([(branch, len(tokens))]), [])
        except BaseException:
            cache.release(branch)
            raise
        return branch
