"""Branches with a cache object each: which of them there are, and the pages that their caches take."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from asyncthink.model.copied_branch import Caches, CopiedBranch, Held, begins, caches_of


@dataclass
class CopyStats:
    """Counters since the cache was made: forks; the tokens that copies held; tokens that were computed again."""

    forks: int = 0
    copies: int = 0
    tokens_copied: int = 0
    tokens_again: int = 0


class CopiedPages:
    """The live branches and the snapshots of a :class:`.copied_cache.CopiedCache`, counted in pages."""

    def __init__(self, caches: Any, num_pages: int, page_size: int = 16, state_pages: int = 0) -> None:
        for name, value, least in (("num_pages", num_pages, 1), ("page_size", page_size, 1)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name}: expected an integer >= {least}, got {value!r}")
        self._caches: Caches = caches
        self.num_pages, self.page_size, self.state_pages = num_pages, page_size, state_pages
        self._branches: dict[int, CopiedBranch] = {}
        self._kept: OrderedDict[int, Held] = OrderedDict()  # snapshots, by the identity of the object
        self._next_id = 0
        self.stats = CopyStats()

    @property
    def branches(self) -> tuple[CopiedBranch, ...]:
        """All branches that were made and not released."""
        return tuple(self._branches.values())

    @property
    def used_pages(self) -> int:
        """Pages of all branches' caches; those of snapshots give way."""
        return self.pages_seen(self.branches)

    @property
    def free_pages(self) -> int:
        return self.num_pages - self.used_pages

    def pages_seen(self, branches: Sequence[CopiedBranch]) -> int:
        """Pages of the caches at which at least one of ``branches`` looks."""
        return sum(self._pages(len(held.tokens) + held.planned) for held in caches_of(branches))

    def pages_freed(self, branches: Sequence[CopiedBranch]) -> int:
        """Pages that releasing all of ``branches`` would free. ValueError for a branch that is not live."""
        looking: dict[int, int] = {}
        for branch in branches:
            self._require_live("branches", branch)
            if branch.held is not None:
                looking[id(branch.held)] = looking.get(id(branch.held), 0) + 1
        freed = (held for held in caches_of(branches) if held.viewers == looking[id(held)])
        return sum(self._pages(len(held.tokens) + held.planned) for held in freed)

    def check(self) -> None:
        """Verify the bookkeeping; RuntimeError naming what is broken. For tests."""
        for held in caches_of(self.branches):
            looking = [branch for branch in self.branches if branch.held is held]
            if len(looking) != held.viewers or (held.planned and len(looking) != 1):
                raise RuntimeError(f"viewers: expected {len(looking)}, got {held.viewers} ({held.planned} planned)")
            if any(branch.seen > len(held.tokens) for branch in looking):
                raise RuntimeError(f"seen: expected at most {len(held.tokens)}, got {[b.seen for b in looking]}")
        if self.used_pages > self.num_pages:
            raise RuntimeError(f"used_pages: expected at most {self.num_pages}, got {self.used_pages}")

    # -- helpers ------------------------------------------------------------------------------------------------

    def _pages_held(self) -> int:
        """Pages of branches and snapshots."""
        kept = [held for held in self._kept.values() if not held.viewers]
        return self.used_pages + sum(self._pages(len(held.tokens)) for held in kept)

    def _pages_for(self, work: Sequence[tuple[CopiedBranch, int]], *, kept: bool) -> int:
        """Pages that the work takes beside the used ones, if snapshots are ``kept``."""
        viewers: dict[int, int] = {}
        total = 0
        for branch, count in work:
            total += self._pages(branch.length + count)
            held = branch.held
            if held is not None:
                left = viewers[id(held)] = viewers.get(id(held), held.viewers) - 1
                if not left and not (kept and held.kept):  # the last one goes on in place
                    total -= self._pages(len(held.tokens))
        return max(total, 0)

    def _nearest(self, tokens: list[int]) -> Held | None:
        """The longest cache of the present weights that holds some of the first of ``tokens``, and nothing else."""
        known, version = [*caches_of(self.branches), *self._kept.values()], self._caches.version()
        fitting = [held for held in known if not held.planned and held.version == version]
        return max((h for h in fitting if begins(tokens, h.tokens)), key=lambda held: len(held.tokens), default=None)

    def _pages(self, tokens: int) -> int:
        return -(-tokens // self.page_size) + self.state_pages

    def _require_live(self, name: str, branch: object) -> None:
        if not isinstance(branch, CopiedBranch) or self._branches.get(branch.id) is not branch:
            raise ValueError(f"{name}: expected a branch of this cache that was not released, got {branch!r}")
