"""What the engine asks of a decoder: branches of contexts, steps over them, and what the model can do.

Two classes keep it: :class:`asyncthink.model.decoder.Decoder`, whose branches share pages, and
:class:`asyncthink.model.fallback.FallbackDecoder`, whose branches have a transformers cache each.

Letters: T rows (tokens) of a step, N rows whose logits are wanted, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from asyncthink.model.gate import Gate


class ContextBranch(Protocol):
    """What one agent sees. Only the cache that made it can use it."""

    @property
    def length(self) -> int:
        """Tokens of the context, planned ones included."""
        ...

    @property
    def base(self) -> int:
        """The shortest length that the branch can be cut back to in place; below, fork it."""
        ...


class BranchCache(Protocol):
    """Makes branches and plans steps within a number of pages. Every method raises with nothing changed, or succeeds.

    ``OutOfPages`` from :meth:`plan` is an ordinary event. A plan serves one :meth:`BranchDecoder.forward`.
    """

    @property
    def num_pages(self) -> int: ...
    @property
    def page_size(self) -> int: ...
    @property
    def chunk(self) -> int:
        """A head of a context is read in place up to a multiple of this many tokens; what is behind is copied."""
        ...

    @property
    def free_pages(self) -> int: ...
    @property
    def used_pages(self) -> int: ...

    def root(self) -> ContextBranch: ...
    def fork(self, branch: Any, at: int | None = None) -> ContextBranch: ...
    def truncate(self, branch: Any, length: int) -> None: ...
    def release(self, branch: Any) -> None: ...
    def plan(self, work: Sequence[tuple[Any, int]]) -> Any: ...
    def fits(self, work: Sequence[tuple[Any, int]]) -> bool: ...
    def forkable(self, branch: Any, at: int) -> int:
        """The most of the first ``at`` tokens of ``branch`` that a fork can begin with and go on."""
        ...

    def snapshot(self, branch: Any) -> None: ...
    def park(self, branch: Any) -> None: ...
    def restore(self, branch: Any) -> bool: ...
    def room_before_mark(self, branch: Any, count: int, marks: Collection[int] = ()) -> int: ...
    def at_mark(self, branch: Any, marks: Collection[int] = ()) -> bool: ...
    @property
    def free_states(self) -> int: ...
    def states_fit(self, work: Sequence[tuple[Any, int]]) -> bool: ...
    def pages_needed(self, work: Sequence[tuple[Any, int]]) -> int: ...
    def pages_seen(self, branches: Sequence[Any]) -> int: ...
    def pages_freed(self, branches: Sequence[Any]) -> int: ...


class BranchStorage(Protocol):
    """Bytes of what a cache holds."""

    @property
    def bytes_per_token(self) -> int:
        """K and V of a token in all layers."""
        ...

    @property
    def dtype(self) -> torch.dtype: ...


class Copied(NamedTuple):
    """What a step copies so that the branch at this ``place`` in its work can go on."""

    place: int
    kv_bytes: int
    state_bytes: int


@dataclass(frozen=True, slots=True)
class ForkBytes:
    """What a fork costs, in bytes: K and V of a token that it reads in place (``shared``) or copies (``token``), and
    the state that it copies whatever its length.

    >>> ForkBytes(token=512, state=64).copied([(0, 10)])
    [Copied(place=0, kv_bytes=5120, state_bytes=64)]
    """

    shared: int = 0
    token: int = 0
    state: int = 0

    def copied(self, copies: Sequence[tuple[int, int]]) -> list[Copied]:
        """The bytes of each copy of a step, given as (place in its work, tokens)."""
        return [Copied(place, tokens * self.token, self.state) for place, tokens in copies]

    def counts(self, copies: int, tokens: int) -> dict[str, int]:
        """The bytes of so many copies of so many tokens together, by the names of ``EngineStats``."""
        return {"kv_bytes_copied": tokens * self.token, "state_bytes_copied": copies * self.state}


class BranchDecoder(Protocol):
    """A causal language model that decodes branches. One thread at a time, which holds :attr:`gate`."""

    why_device: str
    why_dtype: str | None

    @property
    def fork_bytes(self) -> ForkBytes:
        """What a fork reads in place and what it copies."""
        ...

    @property
    def states(self) -> Any: ...
    def copied(self, plan: Any) -> Sequence[Copied]:
        """The copies that a plan of the cache makes."""
        ...

    def counts(self) -> dict[str, int]:
        """Fields of ``EngineStats`` that this decoder counts: passes, copied bytes, states."""
        ...

    @property
    def cache(self) -> BranchCache: ...
    @property
    def storage(self) -> BranchStorage: ...
    @property
    def model(self) -> nn.Module: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def gate(self) -> Gate: ...
    @property
    def join_modes(self) -> tuple[str, ...]: ...
    @property
    def unavailable(self) -> dict[str, str]: ...
    @property
    def max_length(self) -> int | None: ...
    @property
    def linears(self) -> Any: ...
    @property
    def compiled(self) -> bool: ...

    def forward(self, tokens: Tensor, plan: Any, logits_rows: list[int] | Tensor) -> Tensor:
        """tokens [T] int64 in the order of the plan's rows -> logits [N,V] of ``logits_rows`` [N]."""
        ...

    def join(self, dst: Any, src: Any, start: int, stop: int, mode: str) -> None: ...
    def copy(self, dst: Any, src: Any, start: int, stop: int) -> None: ...
    def weights_version(self) -> int: ...
    def refresh(self, weights_only: bool = False) -> None: ...
    def explain(self) -> dict[str, str]: ...
