"""The tree cache of a model with recurrent layers: every branch has a state of fixed size beside its pages.

Letters: B branches of a pass, n new tokens of each of them.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .branch import Branch
from .pages import OutOfPages, require_at_least
from .plan import StepPlan
from .states import NO_SLOT, BranchState, OutOfStates, Snapshots, StatePool
from .tree import Scatter, TreeCache


@dataclass(frozen=True, eq=False, slots=True)
class RowPass:
    """One forward pass of a step: B branches with n new tokens each.

    Args:
        plan: where their K and V go and what they see; its rows are branch by branch.
        rows: [B, n] int64, which row of the step each of them is.
        slots: the state slot of each branch, which the pass reads and writes; ascending.
        fresh: the branches are empty so far: their slots hold nothing yet.
    """

    plan: StepPlan
    rows: Tensor
    slots: tuple[int, ...]
    fresh: bool


@dataclass(frozen=True, eq=False, slots=True)
class StatefulPlan:
    """A step: copy the states (source, destination) of `copies`, then run the passes, then call `commit`.

    Args:
        slots, positions: [T] int64, of all rows of the step, in the order of the work.
        copies: what forks that are written first in this step need of their own; `copied` are their places in the work.
    """

    slots: Tensor
    positions: Tensor
    passes: tuple[RowPass, ...]
    copies: tuple[tuple[int, int], ...]
    copied: tuple[int, ...]
    branches: tuple[Branch, ...]


class StatefulCache(TreeCache):
    """A :class:`TreeCache` whose branches have recurrent states: a slot each, shared from a fork until one writes.

    A fork where the branch ends, or at a snapshot, shares the slot; the state is copied when one of both goes on. A
    fork at another token has no state: :meth:`forkable` says from where its tail must be computed again. Snapshots are
    made by :meth:`snapshot`, and give way, least recently used first, where a step needs slots.

        >>> cache = StatefulCache(num_pages=8, page_size=4, chunk=8, num_states=3)
        >>> organizer = cache.root()
        >>> cache.commit(cache.plan([(organizer, 6)]))
        >>> worker = cache.fork(organizer)
        >>> plan = cache.plan([(organizer, 1), (worker, 1)])      # one pass of two rows; a state is copied before it
        >>> [(p.slots, p.rows.tolist()) for p in plan.passes], plan.copies
        ([((0, 1), [[1], [0]])], ((0, 1),))
        >>> cache.commit(plan)
        >>> cache.forkable(organizer, 6), cache.forkable(organizer, 7)
        (0, 7)

    Args:
        num_states: state slots.
        every: :meth:`room_before_mark` ends steps at multiples of it, where the engine makes snapshots.
        by_token: a pass continues a state by one token: a step of more tokens takes as many passes. Only empty branches
            take several in one, and steps end at given marks alone.

    Raises ValueError where a size is not positive.
    """

    def __init__(
        self,
        num_pages: int,
        page_size: int = 16,
        chunk: int = 512,
        *,
        num_states: int,
        every: int = 512,
        by_token: bool = False,
    ) -> None:
        super().__init__(num_pages, page_size, chunk)
        self.every = sys.maxsize if by_token else require_at_least("every", every, 1)
        self.by_token = by_token
        self._states: dict[int, BranchState] = {}
        self._slots = StatePool(num_states)
        self._snapshots = Snapshots(self._slots)

    @property
    def num_states(self) -> int:
        return self._slots.num_states

    @property
    def free_states(self) -> int:
        """Slots that a step can have: the free ones, and those that only snapshots hold."""
        return self._slots.free + self._snapshots.reclaimable

    @property
    def used_states(self) -> int:
        """Slots that somebody holds, snapshots included."""
        return self._slots.num_states - self._slots.free

    @property
    def snapshots(self) -> int:
        """How many snapshots are kept."""
        return len(self._snapshots)

    # -- branches -----------------------------------------------------------------------------------------------

    def forkable(self, branch: Branch, at: int) -> int:
        """The most of the first `at` tokens of `branch` that a fork can have with a state. ValueError as in `fork`."""
        self._branches.require("branch", branch)
        state = self._states[branch.id]
        known = [length for length in self._known(state) if length <= at]
        return max(known, default=0)

    def fork(self, branch: Branch, at: int | None = None) -> Branch:
        """A branch that sees the first `at` tokens of `branch` (all by default), and shares the state behind them.

        Without a state there (see :meth:`forkable`) the fork can be forked, but not go on.
        """
        child = super().fork(branch, at)
        parent, state = self._states[branch.id], self._states[child.id]
        self._inherit(state, parent, child.length)
        if parent.length == child.length and parent.slot != NO_SLOT:
            self._slots.share(parent.slot)
            state.slot, state.length = parent.slot, parent.length
        else:
            self._revive(state, child.length)
        return child

    def truncate(self, branch: Branch, length: int) -> None:
        """As :meth:`TreeCache.truncate`; the branch can go on if a snapshot has the state at `length`."""
        before = branch.length
        super().truncate(branch, length)
        if branch.length < before:
            state = self._states[branch.id]
            for beyond in [at for at in state.snapshots if at > length]:
                self._snapshots.let_go(state.snapshots.pop(beyond))
            self._forget(state)
            self._revive(state, length)

    def release(self, branch: Branch) -> None:
        super().release(branch)
        state = self._states.pop(branch.id)
        self._forget(state)
        for snapshot in state.snapshots.values():
            self._snapshots.let_go(snapshot)

    def join(self, dst: Branch, src: Branch, start: int, stop: int, mode: Literal["append", "link"]) -> Scatter | None:
        """Raises ValueError: joined tokens would not have entered the recurrent state."""
        raise ValueError(f"mode: expected an exact join, because this model has recurrent states, got {mode!r}")

    # -- states -------------------------------------------------------------------------------------------------

    def snapshot(self, branch: Branch) -> None:
        """Keep the state behind all tokens of `branch` for later forks, until its slot is needed."""
        self._branches.require("branch", branch)
        state = self._states[branch.id]
        if state.slot != NO_SLOT and state.length == branch.length > 0:
            kept = state.snapshots.get(state.length)
            if kept is None or kept not in self._snapshots:
                if kept is not None:
                    self._snapshots.let_go(kept)
                kept = state.snapshots[state.length] = self._snapshots.add(state.slot, state.length)
                kept.users = 1

    def park(self, branch: Branch) -> None:
        """The branch rests: its state becomes a snapshot, which gives way where a step needs the slot."""
        self.snapshot(branch)
        state = self._states[branch.id]
        if branch.length:
            self._forget(state)

    def restore(self, branch: Branch) -> bool:
        """Whether the branch can go on: it has its state, or a snapshot gives it back."""
        self._branches.require("branch", branch)
        state = self._states[branch.id]
        if state.length != branch.length:
            self._revive(state, branch.length)
        return state.length == branch.length

    def room_before_mark(self, branch: Branch, count: int, marks: Collection[int] = ()) -> int:
        """How many of the next `count` tokens a step may take, so that it ends at the first mark on its way.

        Marks are the lengths in `marks` and the multiples of `every`.
        """
        length = branch.length
        ahead = [mark - length for mark in marks if mark > length]
        return min(count, self.every - length % self.every, *ahead)

    def at_mark(self, branch: Branch, marks: Collection[int] = ()) -> bool:
        """Whether the branch ends at a mark, where a snapshot is wanted."""
        return branch.length in marks or (branch.length > 0 and branch.length % self.every == 0)

    # -- steps --------------------------------------------------------------------------------------------------

    def states_fit(self, work: Sequence[tuple[Branch, int]]) -> bool:
        """Whether `plan(work)` finds the slots that it needs, those of snapshots included."""
        states = [self._states[branch.id] for branch, _ in work]
        if self._slots_needed(states, Counter()) <= self._slots.free:
            return True
        return self._slots_needed(states, self._snapshots.counts()) <= self.free_states

    def plan(self, work: Sequence[tuple[Branch, int]]) -> StatefulPlan:  # type: ignore[override]
        """As :meth:`TreeCache.plan`, in one pass for each number of new tokens; empty branches have their own.

        Raises ValueError for a branch without a state; OutOfPages, OutOfStates with the branches as before.
        """
        work = list(work)
        pages = self.pages_needed(work)  # checks the work
        branches = [branch for branch, _ in work]
        states = [self._states[branch.id] for branch in branches]
        for branch, state in zip(branches, states, strict=True):
            if state.length != branch.length:
                raise ValueError(f"work: branch {branch.id} has no recurrent state behind its {branch.length} tokens")
        if pages > self.free_pages:
            raise OutOfPages(pages, self.free_pages)
        while (needed := self._slots_needed(states, Counter())) > self._slots.free:
            if not self._snapshots.evict():
                raise OutOfStates(needed, self._slots.free)
        copies, copied = self._own(states)
        passes = tuple(self._passes(work, states))
        for state in states:
            state.length = -1
        T = sum(count for _, count in work)
        slots, positions = (torch.empty(T, dtype=torch.int64, device="cpu") for _ in range(2))
        for each in passes:
            slots[each.rows.flatten()] = each.plan.slots
            positions[each.rows.flatten()] = each.plan.positions.long()
        self.stats.states_copied += len(copies)
        self.stats.passes += len(passes)
        return StatefulPlan(slots, positions, passes, copies, copied, tuple(branches))

    def commit(self, plan: StatefulPlan) -> None:
        """The passes of the plan have run: the slots hold the states behind the new tokens."""
        for branch in plan.branches:
            self._states[branch.id].length = branch.length

    def check(self) -> None:
        super().check()
        held = Counter(state.slot for state in self._states.values() if state.slot != NO_SLOT)
        held.update(snapshot.slot for snapshot in self._snapshots.all())
        users = Counter(s for state in self._states.values() for s in state.snapshots.values())
        for slot in range(self.num_states):
            if held[slot] != self._slots.holders(slot):
                raise RuntimeError(f"broken cache: slot {slot} counts {self._slots.holders(slot)}, has {held[slot]}")
        for snapshot in {*self._snapshots.all(), *users}:
            if users[snapshot] != snapshot.users:
                raise RuntimeError(f"broken cache: {snapshot} has {users[snapshot]} users")
        if any(users[snapshot] == 0 for snapshot in self._snapshots.all()):
            raise RuntimeError("broken cache: a snapshot that nobody has")

    # -- helpers ------------------------------------------------------------------------------------------------

    def _add(self, fixed: tuple[object, ...]) -> Branch:
        branch = super()._add(fixed)  # type: ignore[arg-type]
        self._states[branch.id] = BranchState(length=0 if not branch.length else -1)
        return branch

    def _known(self, state: BranchState) -> list[int]:
        """The lengths at which a branch has a state."""
        kept = [length for length, snapshot in state.snapshots.items() if snapshot in self._snapshots]
        return [*kept, state.length] if state.slot != NO_SLOT and state.length > 0 else kept

    def _inherit(self, child: BranchState, parent: BranchState, length: int) -> None:
        """The child has the snapshots that lie in what it sees; those that were given up are forgotten."""
        for at, snapshot in list(parent.snapshots.items()):
            if snapshot not in self._snapshots:
                self._snapshots.let_go(parent.snapshots.pop(at))
            elif at <= length:
                snapshot.users += 1
                child.snapshots[at] = snapshot

    def _revive(self, state: BranchState, length: int) -> None:
        """Take the state at `length` from a snapshot, if there is one."""
        if length == 0:
            state.length = 0
        snapshot = state.snapshots.get(length)
        if snapshot is not None and snapshot in self._snapshots:
            self._forget(state)
            state.slot, state.length = self._snapshots.use(snapshot), length

    def _forget(self, state: BranchState) -> None:
        if state.slot != NO_SLOT:
            self._slots.drop(state.slot)
        state.slot, state.length = NO_SLOT, -1

    def _slots_needed(self, states: Sequence[BranchState], given_up: Counter[int]) -> int:
        """Slots that a step of these branches takes: for empty ones, and for those that share theirs.

        ``given_up`` are holders of each slot that do not count.
        """
        sharing = Counter(state.slot for state in states)
        fresh = sharing.pop(NO_SLOT, 0)
        # Where everybody who shares a slot steps, the last one keeps it.
        return fresh + sum(
            count - (self._slots.holders(slot) - given_up[slot] == count) for slot, count in sharing.items()
        )

    def _own(self, states: Sequence[BranchState]) -> tuple[tuple[tuple[int, int], ...], tuple[int, ...]]:
        """Give every branch a slot of its own -> copies (source, destination), and their places in the work."""
        copies: list[tuple[int, int]] = []
        copied: list[int] = []
        for place, state in enumerate(states):
            if state.slot == NO_SLOT:
                state.slot = self._slots.take()
            elif self._slots.holders(state.slot) > 1:
                slot = self._slots.take()
                copies.append((state.slot, slot))
                copied.append(place)
                self._slots.drop(state.slot)
                state.slot = slot
        return tuple(copies), tuple(copied)

    def _passes(self, work: Sequence[tuple[Branch, int]], states: Sequence[BranchState]) -> list[RowPass]:
        """The rows of a step by passes: each has branches with as many new tokens, in the order of their slots."""
        first, groups = 0, dict[tuple[int, bool, int], list[tuple[int, int, Branch]]]()
        for (branch, count), state in zip(work, states, strict=True):
            fresh = state.length == 0
            several = range(count) if self.by_token and not fresh else (0,)
            for turn in several:
                key = (turn, fresh, 1 if len(several) > 1 else count)
                groups.setdefault(key, []).append((state.slot, first + turn, branch))
            first += count
        passes: list[RowPass] = []
        for turn, fresh, count in sorted(groups, key=lambda key: key[0]):
            members = sorted(groups[turn, fresh, count], key=lambda member: member[0])
            if passes:
                self._live = None  # else a plan of this step could be advanced in place
            plan = super().plan([(branch, count) for _, _, branch in members])
            rows = torch.tensor([row for _, row, _ in members], device="cpu")[:, None]
            slots = tuple(slot for slot, _, _ in members)
            passes.append(RowPass(plan, rows + torch.arange(count, device="cpu"), slots, fresh))
        return passes
