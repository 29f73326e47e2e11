"""Which groups of a step are trained on: as many as it wants of those that differ, drawing again for those that do not.

A group whose episodes earn the same has nothing to teach. It is neither trained on nor counted in any divisor; other
questions take its place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from asyncthink.train.distributed import World
from asyncthink.train.rollout import Question, Rollout, differs

Group = list[Rollout]


@dataclass(frozen=True, slots=True)
class DrawnGroups:
    """The groups of one step.

    Args:
        mine: all that this process drew.
        trained: this process's groups that are trained on, each with its number among those of all processes.
        drawn, differing, trained_count: groups of all processes: drawn, with something to learn, trained on.
        usable: whether any process has a usable episode.
    """

    mine: list[Group]
    trained: list[tuple[int, Group]]
    drawn: int
    differing: int
    trained_count: int
    usable: bool

    def metrics(self) -> dict[str, float]:
        """Groups drawn and trained on, and the share of the drawn ones that had nothing to teach."""
        silent = 1 - self.differing / self.drawn
        return {"groups": self.drawn, "groups_trained": self.trained_count, "groups_silent": silent}

    def minibatches(self, count: int) -> list[list[Rollout]]:
        """This process's usable episodes in each of ``count`` minibatches, possibly none.

        A group's number decides its minibatch, so the number of processes does not. Minibatches that are empty in all
        processes are left out.
        """
        made: list[list[Rollout]] = [[] for _ in range(min(count, self.trained_count))]
        for number, group in self.trained:
            made[number % len(made)] += [rollout for rollout in group if rollout.usable]
        return made


def draw_groups(
    world: World,
    ask: Callable[[int, int], Sequence[Question]],
    roll: Callable[[Sequence[Question]], list[Group]],
    wanted: int,
    first: int,
    rounds: int,
) -> DrawnGroups:
    """Draw ``first`` groups, then as many as are missing of the ``wanted`` ones that differ, in at most ``rounds``.

    Each process rolls out its share of the questions. Of more than ``wanted`` groups that differ the first ones are
    trained on. The result is a function of what ``ask`` and ``roll`` return; the number of processes changes only which
    of them holds a group.

    Args:
        ask: (count, round from 0) -> the questions of the round.
        roll: questions -> their groups.
    """
    mine: list[tuple[int, Group]] = []
    flags: list[tuple[int, bool, bool]] = []  # number, differs, any usable episode: of all processes
    for number in range(rounds):
        count = first if number == 0 else wanted - sum(differing for _, differing, _ in flags)
        if count <= 0:
            break
        questions, start = ask(count, number), len(flags)
        groups = roll(world.mine(questions))
        own = list(zip(world.mine(range(start, start + count)), groups, strict=True))
        mine += own
        flags += world.gather([(place, differs(group), any(r.usable for r in group)) for place, group in own])
    differing = sorted(place for place, differs_, _ in flags if differs_)
    numbers = {place: number for number, place in enumerate(differing[:wanted])}
    return DrawnGroups(
        [group for _, group in mine],
        [(numbers[place], group) for place, group in mine if place in numbers],
        len(flags),
        len(differing),
        len(numbers),
        any(usable for _, _, usable in flags),
    )
