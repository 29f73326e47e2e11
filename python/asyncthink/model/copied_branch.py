"""A branch that has a cache object of its own, or looks at another one's while neither goes on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol


class Caches(Protocol):
    """What can be done with a cache object; None is the cache of no tokens."""

    def copy(self, cache: Any) -> Any: ...
    def croppable(self, cache: Any) -> bool: ...
    def crop(self, cache: Any, remove: int) -> bool: ...
    def version(self) -> int:
        """Another number once caches would be computed by other weights."""
        ...


class Held:
    """A cache object, the ``tokens`` that it holds, and how many more its one writer has ``planned``.

    ``viewers`` counts branches; ``kept``: it is a snapshot, too; ``version`` is that of the weights that began it.
    """

    __slots__ = ("cache", "kept", "planned", "tokens", "version", "viewers")

    def __init__(self, cache: Any, tokens: list[int], version: int) -> None:
        self.cache, self.tokens, self.version, self.kept = cache, tokens, version, False
        self.viewers = self.planned = 0


class CopiedBranch:
    """One agent's view: the first ``seen`` tokens of ``held``, then those to compute ``again``, then planned ones.

    Branches may look at the same cache object as long as none of them goes on. Made by a :class:`CopiedCache`.
    """

    __slots__ = ("again", "held", "id", "planned", "seen")
    base = 0

    def __init__(self, branch_id: int) -> None:
        self.id = branch_id
        self.held: Held | None = None
        self.seen = self.planned = 0
        self.again: list[int] = []

    @property
    def length(self) -> int:
        """Tokens in the branch's context; the next token's position."""
        return self.seen + len(self.again) + self.planned

    @property
    def tokens(self) -> list[int]:
        """Those that are computed, and those that are to be computed again."""
        return [*(self.held.tokens[: self.seen] if self.held is not None else ()), *self.again]

    def __repr__(self) -> str:
        return f"CopiedBranch(id={self.id}, length={self.length})"


class CopiedPlan(NamedTuple):
    """A step: each branch with the number of its new tokens; ``copied``: those whose cache was copied for it.

    ``copied`` are pairs: a place in the work, and the number of tokens in the copy.
    """

    work: tuple[tuple[CopiedBranch, int], ...]
    copied: tuple[tuple[int, int], ...] = ()

    @property
    def rows(self) -> int:
        return sum(count for _, count in self.work)


def caches_of(branches: Iterable[CopiedBranch]) -> list[Held]:
    """The cache objects of branches, each once."""
    return list({id(branch.held): branch.held for branch in branches if branch.held is not None}.values())


def begins(tokens: list[int], head: list[int]) -> bool:
    """Whether ``head`` holds some of the first of ``tokens``, and nothing else."""
    return 0 < len(head) <= len(tokens) and tokens[: len(head)] == head
