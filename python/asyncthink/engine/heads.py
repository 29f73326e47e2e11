"""Computed heads of contexts in one tree cache: the branches that are kept after their episodes, and pinned ones.

Letters: P tokens of a pinned head that a context begins with, C tokens of a chunk (:class:`TreeCache`).

**Where nodes begin decides how attention rounds**, as a row adds up one partial result for each chunk of each node. So
every context is laid out by its tokens and the pinned heads alone: the first P tokens lie where the pinned head has
them, the others in chunks that begin at P, P + C, P + 2C and so on. A head that episodes left behind is used in a way
that keeps this layout: its whole chunks are read in place (a fork), the begun one is copied, less than C tokens of K
and V. Nothing is computed again, and no result depends on whether a head was there.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

from asyncthink.engine.radix import RadixTree, Tokens, common

if TYPE_CHECKING:
    from asyncthink.model.contract import BranchCache, BranchDecoder, ContextBranch


class Pinned:
    """A head that stays until the last of its ``users`` is gone or the weights change.

    The root of contexts that begin with none has no tokens and no branch.
    """

    def __init__(self, tokens: Tokens, branch: ContextBranch | None) -> None:
        self.tokens, self.branch = tokens, branch
        self.users: weakref.WeakSet[object] = weakref.WeakSet()
        self.trees: dict[int, RadixTree[Head]] = {}  # by P: kept heads whose first P tokens are these


class Head:
    """A branch that holds P pinned tokens and then ``tokens``, all of them computed."""

    __slots__ = ("branch", "pinned", "shared")

    def __init__(self, pinned: Pinned, shared: int, branch: ContextBranch) -> None:
        self.pinned, self.shared, self.branch = pinned, shared, branch


class Heads:
    """All heads of one decoder's cache, for the samplers that share it. Least recently used ones are evicted first.

    ``version`` is the :meth:`BranchDecoder.weights_version` they were computed under; :meth:`drop_stale` releases all
    of them after a change.
    """

    def __init__(self, cache: BranchCache, version: int) -> None:
        self._cache, self.version = cache, version
        self.pinned: dict[Tokens, Pinned] = {}
        self.root = Pinned((), None)
        self.evictions = 0
        self._kept: OrderedDict[Head, None] = OrderedDict()  # least recently used first

    @classmethod
    def of(cls, decoder: BranchDecoder) -> Heads:
        """Those of a decoder, made by its first sampler."""
        shared = decoder.gate.shared
        if cls not in shared:
            shared[cls] = cls(decoder.cache, decoder.weights_version())
        heads: Heads = shared[cls]
        return heads

    def __len__(self) -> int:
        """Number of kept heads; pinned ones do not count."""
        return len(self._kept)

    @property
    def branches(self) -> list[ContextBranch]:
        """Of all heads, the pinned ones first."""
        pinned = [branch for pinned in self.pinned.values() if (branch := pinned.branch)]
        return [*pinned, *(head.branch for head in self._kept)]

    @property
    def evictable_pages(self) -> int:
        """Pages that evicting every kept head would free."""
        return self._cache.pages_freed([head.branch for head in self._kept])

    def current(self, pinned: Pinned) -> bool:
        """Whether a pinned head (or the root) that a context began with is still one of these."""
        return pinned is self.root or self.pinned.get(pinned.tokens) is pinned

    def pin(self, tokens: Tokens, branch: ContextBranch) -> None:
        """Own a branch that holds ``tokens``."""
        self.pinned[tokens] = Pinned(tokens, branch)

    def unpin(self, tokens: Tokens, user: object) -> None:
        """One user less; with the last one the head is released, and so are the kept heads that begin with it."""
        pinned = self.pinned.get(tokens)  # None: the weights have changed since
        if pinned is not None:
            pinned.users.discard(user)
            if not pinned.users:
                self._release_pinned(pinned)

    def find(self, pinned: Pinned, shared: int, tokens: Tokens) -> tuple[ContextBranch | None, int]:
        """(branch, length): the kept head that has most of ``tokens`` behind the first P = ``shared`` of a pinned one.

        Its first ``length`` tokens, P included, are those of the context; (None, ``shared``) without such a head. The
        head is the most recently used one now.
        """
        tree = pinned.trees.get(shared)
        head, length = tree.find(tokens) if tree is not None else (None, 0)
        if head is None:
            return None, shared
        self._kept.move_to_end(head)
        return head.branch, shared + length

    def keep(self, pinned: Pinned, shared: int, tokens: Tokens, branch: ContextBranch) -> None:
        """Own a branch that holds P = ``shared`` pinned tokens, then ``tokens``, laid out as above.

        It is released at once if another head has all of these tokens, and replaces a head that it continues.
        """
        head = Head(pinned, shared, branch)
        tree = pinned.trees.setdefault(shared, RadixTree())
        replaced = tree.insert(tokens, head)
        if replaced == [head]:
            self.find(pinned, shared, tokens)  # the other head is used again
        else:
            self._kept[head] = None
        for old in replaced:
            self._kept.pop(old, None)
            self._cache.release(old.branch)

    def evict(self) -> bool:
        """Release the least recently used kept head, or else a pinned one without users; False if there is none."""
        if self._kept:
            self._release(next(iter(self._kept)))
            self.evictions += 1
            return True
        unused = next((pinned for pinned in self.pinned.values() if not pinned.users), None)
        if unused is not None:
            self._release_pinned(unused)
        return unused is not None

    def limit(self, pages: int) -> None:
        """Evict heads until those that are left see at most so many pages, beside what pinned ones see."""
        fixed = self._cache.pages_seen([branch for pinned in self.pinned.values() if (branch := pinned.branch)])
        while self._kept and self._cache.pages_seen(self.branches) - fixed > pages:
            self.evict()

    def clear(self) -> None:
        """Release all heads, also the pinned ones."""
        for branch in self.branches:
            self._cache.release(branch)
        self._kept.clear()
        self.pinned.clear()
        self.root = Pinned((), None)

    def drop_stale(self, version: int) -> None:
        """Release all heads if ``version``, the weights' current one, is not that which they were computed under."""
        if version != self.version:
            self.clear()
            self.version = version

    def _release_pinned(self, pinned: Pinned) -> None:
        del self.pinned[pinned.tokens]
        for head in [head for head in self._kept if head.pinned is pinned]:
            self._release(head)
        assert pinned.branch is not None
        self._cache.release(pinned.branch)

    def _release(self, head: Head) -> None:
        del self._kept[head]
        tree = head.pinned.trees[head.shared]
        tree.remove(head)
        if not len(tree):
            del head.pinned.trees[head.shared]
        self._cache.release(head.branch)


def longest(candidates: Sequence[Pinned], tokens: Tokens, limit: int, least: int) -> tuple[Pinned | None, int]:
    """(pinned head, P): the one that has the most tokens in common with the first ``limit`` of ``tokens``.

    A later candidate is taken only for ``least`` tokens more. (None, 0) if none has any in common.
    """
    best: Pinned | None = None
    shared = 0
    for pinned in candidates:
        length = common(pinned.tokens[:limit], tokens[:limit])
        if length >= shared + (least if best is not None else 1):
            best, shared = pinned, length
    return best, shared
