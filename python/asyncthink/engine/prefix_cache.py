"""Prompt heads: what stands before the question or sub-query in a template is cached once and shared by all agents."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch

from asyncthink.protocol.codec import Codec
from asyncthink.protocol.messages import Question
from asyncthink.protocol.prompts import PromptFormat

if TYPE_CHECKING:
    from asyncthink.model.decoder import Decoder
    from asyncthink_kernels.cache import Branch


class PrefixCache:
    """Encodes prompts, and keeps for each role a branch that holds its constant head.

    A prompt is encoded once, as a whole. An agent branches from the head where the tokens of both really agree, at a
    place that leaves at least one token of the prompt to compute. Heads are computed by a forward pass of their own
    (not beside an agent), so the K/V that agents branch from is always the same.
    """

    def __init__(self, prompts: PromptFormat, codec: Codec, decoder: Decoder) -> None:
        self._prompts, self._codec, self._decoder = prompts, codec, decoder
        self._branches: dict[str, Branch] = {}
        self._heads: dict[str, list[int]] = {}

    def encode(self, name: str, *, question: Question = "", subquery: str = "") -> list[int]:
        """Tokens of template ``name`` with its slots filled; those of ``worker_shared`` continue other tokens.

        Raises ValueError for a prompt without any token, from which nothing could be drawn.
        """
        parts = self._prompts.parts(name, question=question, subquery=subquery)
        tokens = self._codec.encode(parts, continues=name == "worker_shared")
        if not tokens and name != "worker_shared":
            raise ValueError(f"prompt {name!r}: expected at least one token, got none")
        return tokens

    def prepare(self, names: Iterable[str]) -> None:
        """Compute the heads of these templates that are not in the cache yet. Raises OutOfPages."""
        for name in names:
            if name in self._branches:
                continue
            head = self._codec.encode([(self._prompts.head(name), True)])
            if head:
                self._branches[name], self._heads[name] = self._prefill(head), head

    def branch(self, name: str, tokens: Sequence[int]) -> Branch:
        """A new branch that holds the first ``tokens`` of a prompt from template ``name``, as many as are cached.

        At least one token is left to compute: from it the first one is drawn.
        """
        head = self._heads.get(name, [])
        limit = min(len(head), len(tokens) - 1)
        shared = next((k for k in range(limit) if head[k] != tokens[k]), limit)
        cache = self._decoder.cache
        return cache.fork(self._branches[name], shared) if shared > 0 else cache.root()

    def clear(self) -> None:
        """Give the heads' pages back; they are computed again when needed."""
        for branch in self._branches.values():
            self._decoder.cache.release(branch)
        self._branches.clear()
        self._heads.clear()

    def _prefill(self, tokens: list[int]) -> Branch:
        cache = self._decoder.cache
        branch = cache.root()
        try:
            self._decoder.forward(torch.tensor(tokens, device="cpu"), cache.plan([(branch, len(tokens))]), [])
        except BaseException:
            cache.release(branch)
            raise
        return branch
