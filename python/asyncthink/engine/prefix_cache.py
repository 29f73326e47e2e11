"""Cached prompt prefixes: the text of a template before its first slot is computed once and shared by all agents."""

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
    """Encodes prompts, and keeps for each template a branch that holds its constant prefix.

    A prompt is encoded once, as a whole. An agent forks from the prefix after their common tokens, so that at least one
    token of the prompt remains to be computed. A prefix is computed by a forward pass of its own, without other rows,
    so its K/V are always the same.
    """

    def __init__(self, prompts: PromptFormat, codec: Codec, decoder: Decoder) -> None:
        self._prompts, self._codec, self._decoder = prompts, codec, decoder
        self._branches: dict[str, Branch] = {}
        self._tokens: dict[str, list[int]] = {}  # of the branches

    def encode(self, name: str, *, question: Question = "", subquery: str = "") -> list[int]:
        """Tokens of template ``name`` with its slots filled; those of a worker with shared context continue others.

        Raises ValueError for a prompt without tokens, because the first draw needs the logits of one.
        """
        parts = self._prompts.parts(name, question=question, subquery=subquery)
        continues = name.endswith("worker_shared")
        tokens = self._codec.encode(parts, continues=continues)
        if not tokens and not continues:
            raise ValueError(f"prompt {name!r}: expected at least one token, got none")
        return tokens

    def prepare(self, names: Iterable[str]) -> None:
        """Compute the prefixes of these templates that are not cached yet. Raises OutOfPages."""
        for name in names:
            if name in self._branches:
                continue
            prefix = self._codec.encode([(self._prompts.prefix(name), True)])
            if prefix:
                self._branches[name], self._tokens[name] = self._prefill(prefix), prefix

    def branch(self, name: str, tokens: Sequence[int]) -> Branch:
        """A new branch with the first ``tokens`` of a prompt from template ``name``, as many as are cached.

        At least one token remains to be computed, because the first draw needs its logits.
        """
        prefix = self._tokens.get(name, [])
        limit = min(len(prefix), len(tokens) - 1)
        shared = next((k for k in range(limit) if prefix[k] != tokens[k]), limit)
        cache = self._decoder.cache
        return cache.fork(self._branches[name], shared) if shared > 0 else cache.root()

    def clear(self) -> None:
        """Release the prefixes. They are computed again when they are needed."""
        for branch in self._branches.values():
            self._decoder.cache.release(branch)
        self._branches.clear()
        self._tokens.clear()

    def _prefill(self, tokens: list[int]) -> Branch:
        cache = self._decoder.cache
        branch = cache.root()
        try:
            self._decoder.forward(torch.tensor(tokens, device="cpu"), cache.plan([(branch, len(tokens))]), [])
        except BaseException:
            cache.release(branch)
            raise
        return branch
