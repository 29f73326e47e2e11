"""Slots of recurrent states: who holds which, and the snapshots that are kept for later forks. It knows no contents."""

from __future__ import annotations

import heapq
from collections import Counter, OrderedDict
from dataclasses import dataclass, field

from .pages import OutOfPages, require_at_least

NO_SLOT = -1


class OutOfStates(OutOfPages):
    """The pool has fewer free state slots than a step needs. The branches are as before; snapshots may have gone.

    `needed` slots were asked for, `free` were there. An ordinary event, handled as :class:`OutOfPages` is.
    """

    def __init__(self, needed: int, free: int) -> None:
        RuntimeError.__init__(self, f"out of state slots: {needed} needed, {free} free")
        self.needed = needed
        self.free = free


class StatePool:
    """`num_states` slots, each free or held by one holder or more. The lowest free slot is taken first.

        >>> pool = StatePool(2)
        >>> slot = pool.take()
        >>> pool.share(slot)
        >>> pool.holders(slot), pool.free
        (2, 1)
        >>> pool.drop(slot), pool.drop(slot), pool.free
        (None, None, 2)

    Raises ValueError where `num_states` is not positive.
    """

    def __init__(self, num_states: int) -> None:
        self.num_states = require_at_least("num_states", num_states, 1)
        self._free = list(range(self.num_states))
        self._holders = [0] * self.num_states

    @property
    def free(self) -> int:
        return len(self._free)

    def holders(self, slot: int) -> int:
        return self._holders[slot]

    def take(self) -> int:
        """A slot with one holder. Raises OutOfStates."""
        if not self._free:
            raise OutOfStates(1, 0)
        slot = heapq.heappop(self._free)
        self._holders[slot] = 1
        return slot

    def share(self, slot: int) -> None:
        """One holder more of a held slot."""
        assert self._holders[slot] > 0
        self._holders[slot] += 1

    def drop(self, slot: int) -> None:
        """One holder less; the slot is free after the last."""
        assert self._holders[slot] > 0
        self._holders[slot] -= 1
        if not self._holders[slot]:
            heapq.heappush(self._free, slot)


@dataclass(eq=False, slots=True)
class Snapshot:
    """The state behind the first `length` tokens of some branches. `slot` is NO_SLOT once it was given up."""

    slot: int
    length: int
    users: int = 0


@dataclass(eq=False, slots=True)
class BranchState:
    """What a branch has: the state of its first `length` tokens in `slot`, and snapshots by their lengths.

    `length` is -1 where the state is not known: in a step that is under way or failed, or behind a fork in the middle.
    """

    slot: int = NO_SLOT
    length: int = 0
    snapshots: dict[int, Snapshot] = field(default_factory=dict)


class Snapshots:
    """All snapshots of a pool, the least recently used first. Slots that a step needs are taken from them."""

    def __init__(self, pool: StatePool) -> None:
        self._pool = pool
        self._kept: OrderedDict[Snapshot, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, snapshot: Snapshot) -> bool:
        return snapshot in self._kept

    def all(self) -> tuple[Snapshot, ...]:
        """Those that are kept, the least recently used first."""
        return tuple(self._kept)

    @property
    def reclaimable(self) -> int:
        """Slots that nobody but snapshots holds."""
        return sum(self._pool.holders(slot) == count for slot, count in self.counts().items())

    def counts(self) -> Counter[int]:
        """How many snapshots hold each slot."""
        return Counter(snapshot.slot for snapshot in self._kept)

    def add(self, slot: int, length: int) -> Snapshot:
        """A snapshot that holds `slot`, too."""
        self._pool.share(slot)
        snapshot = Snapshot(slot, length)
        self._kept[snapshot] = None
        return snapshot

    def use(self, snapshot: Snapshot) -> int:
        """The snapshot's slot, with one holder more. It is the most recently used one now."""
        self._kept.move_to_end(snapshot)
        self._pool.share(snapshot.slot)
        return snapshot.slot

    def let_go(self, snapshot: Snapshot) -> None:
        """One branch less has it; the last one's leaving gives the slot back."""
        snapshot.users -= 1
        if not snapshot.users and snapshot in self._kept:
            self._drop(snapshot)

    def evict(self) -> bool:
        """Give up the least recently used snapshot; False if there is none."""
        if not self._kept:
            return False
        self._drop(next(iter(self._kept)))
        return True

    def _drop(self, snapshot: Snapshot) -> None:
        del self._kept[snapshot]
        self._pool.drop(snapshot.slot)
        snapshot.slot = NO_SLOT
