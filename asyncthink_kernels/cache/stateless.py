"""What a cache without recurrent states answers about them: every branch can go on, and be forked, anywhere."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence

from .branch import Branch
from .branches import Branches


class Stateless:
    """The part of a cache's interface that is about states; :class:`.stateful.StatefulCache` has them."""

    _branches: Branches

    def forkable(self, branch: Branch, at: int) -> int:
        """The most of the first `at` tokens of `branch` that a fork which goes on can begin with: all of them here."""
        self._branches.require("branch", branch)
        return at

    def snapshot(self, branch: Branch) -> None:
        """Keep what a later fork at the present end of `branch` needs: nothing here."""

    def park(self, branch: Branch) -> None:
        """The branch rests. Nothing changes here."""

    def restore(self, branch: Branch) -> bool:
        """Whether the branch can go on after a rest: always, here."""
        return True

    def room_before_mark(self, branch: Branch, count: int, marks: Collection[int] = ()) -> int:
        """How many of the next `count` tokens a step may take, if it should end at marks: all of them here."""
        return count

    def at_mark(self, branch: Branch, marks: Collection[int] = ()) -> bool:
        """Whether a snapshot is wanted where the branch ends: never, here."""
        return False

    @property
    def free_states(self) -> int:
        """How many more branches can have a recurrent state; without such states any number."""
        return sys.maxsize

    def states_fit(self, work: Sequence[tuple[Branch, int]]) -> bool:
        """Whether `plan(work)` finds the recurrent states that it needs: always, without such states."""
        return True
