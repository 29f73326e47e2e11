"""The K/V of stretches (:mod:`.stretch`) as branches of a cache, which can be evicted: the tokens stay."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

from asyncthink.engine.stretch import WHOLE, Joined, Stretch

if TYPE_CHECKING:
    from asyncthink.model.contract import BranchCache, ContextBranch


class Stretches:
    """The K/V of all stretches in one cache, least recently used first. Callers hold the decoder's gate.

    ``version`` is the decoder's :meth:`BranchDecoder.weights_version`.
    """

    def __init__(self, cache: BranchCache, version: Callable[[], int]) -> None:
        self.cache = cache
        self._version, self._computed_under = version, version()
        self.kept: OrderedDict[Stretch, None] = OrderedDict()

    def keep(self, stretch: Stretch, branch: ContextBranch) -> None:
        """Give a stretch its branch."""
        stretch.branch = branch
        self.kept[stretch] = None

    def touch(self, stretch: Stretch) -> None:
        """The stretch is the most recently used one now."""
        if stretch in self.kept:
            self.kept.move_to_end(stretch)

    def drop(self, stretch: Stretch) -> None:
        """Release the K/V of a stretch, if they are kept; its tokens stay."""
        if stretch.branch is not None:
            self.cache.release(stretch.branch)
            stretch.branch = None
            del self.kept[stretch]

    @property
    def evictable_pages(self) -> int:
        """Pages that :meth:`clear` would free."""
        return self.cache.pages_freed([s.branch for s in self.kept if s.branch is not None and not s.needed])

    def evict(self) -> bool:
        """Release the K/V of the least recently used stretch that no running job needs; False if there is none."""
        for stretch in self.kept:
            if not stretch.needed:
                self.drop(stretch)
                return True
        return False

    def clear(self) -> None:
        """Release the K/V of all stretches that no running job needs."""
        while self.evict():
            pass

    def drop_stale(self) -> None:
        """After a change of the weights, release what was computed under others."""
        version = self._version()
        if version != self._computed_under:
            self.clear()
            self._computed_under = version

    def resume(self, stretch: Stretch) -> None:
        """Cut the K/V to where the branch can go on: a recurrent state may have given way while it was at rest."""
        if stretch.branch is not None and not self.cache.restore(stretch.branch):
            self.cut(stretch, stretch.branch.length - 1)

    def cut(self, stretch: Stretch, length: int) -> None:
        """Keep the K/V of at most the first ``length`` tokens, in a branch that can go on."""
        branch = stretch.branch
        if branch is None or branch.length <= length:
            return
        length = self.cache.forkable(branch, length)
        if len(stretch.users) == 1 and length >= branch.base:  # no other branch sees what goes
            self.cache.truncate(branch, length)
        else:
            stretch.branch = self.cache.fork(branch, length)
            self.cache.release(branch)
        if not stretch.needed and stretch.branch is not None:
            self.cache.park(stretch.branch)

    def trim(self, stretch: Stretch, length: int) -> None:
        """Remove the tokens of a stretch behind the first ``length`` of its context, and what they use."""
        if length >= stretch.length:
            return
        self.cut(stretch, length)
        del stretch.tokens[length - stretch.start :], stretch.logprobs[length - stretch.start :]
        self._shorten_joins(stretch, length)

    def truncate(self, stretch: Stretch, user: object, length: int) -> Stretch:
        """The stretch that ``user`` goes on with when it goes back to the first ``length`` tokens of its context."""
        if length >= stretch.start and len(stretch.users) == 1:
            self.trim(stretch, length)
            if stretch.joins and stretch.joins[-1].at + stretch.joins[-1].count == length:
                self.cut(stretch, length - 1)  # the last token is computed, for its logits
                self._shorten_joins(stretch, length - 1)
            return stretch
        shorter = Stretch(stretch.behind(length), length)
        shorter.users[user] = WHOLE
        self.release(stretch, user)
        return shorter

    def _shorten_joins(self, stretch: Stretch, length: int) -> None:
        """Only tokens before ``length`` are joined by K/V."""
        joins, stretch.joins = stretch.joins, []
        for joined in joins:
            if joined.at + joined.count <= length:
                stretch.joins.append(joined)
                continue
            if joined.at < length:
                kept = Joined(joined.at, length - joined.at, joined.source, joined.first, joined.mode)
                kept.source.users[kept] = kept.stop
                stretch.joins.append(kept)
            self.release(joined.source, joined)

    def release(self, stretch: Stretch, user: object) -> None:
        """``user`` needs the stretch no more: what nothing else uses of it goes, and of those that it used."""
        todo: list[tuple[Stretch, object]] = [(stretch, user)]
        while todo:
            stretch, user = todo.pop()
            del stretch.users[user]
            if stretch.users:
                self.trim(stretch, max(stretch.start, *stretch.users.values()))
                continue
            self.drop(stretch)
            todo += [(joined.source, joined) for joined in stretch.joins]
            if stretch.parent is not None:
                todo.append((stretch.parent, stretch))
