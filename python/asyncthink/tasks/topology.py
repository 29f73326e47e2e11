"""Random organizer topologies over the parts of a search: which agent searches what, when it forks and joins.

No topology is fixed (AsyncThink, arXiv 2510.26658, section 3.1). A seed draws the number of forks, the partition, the
interleaving of forks, own work and joins, and the order of joins. Reinforcement learning finds out which topologies are
good. Every part is assigned to an agent: a demonstration that leaves one out would show a wrong answer.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from asyncthink.tasks.script import Script

MOST_FORKS = 4
STYLES = ("batch", "interleave", "mixed")


@dataclass(frozen=True, slots=True)
class Parts:
    """A task's parts, numbered 0, 1, ..., and the functions with which :func:`organize` writes about them.

    ``subquery`` names a group of parts to a worker; ``work`` writes a worker's script and returns its results; ``own``
    writes one part that the organizer does itself; ``join`` writes a join; ``close`` writes the answer.
    """

    count: int
    subquery: Callable[[Sequence[int]], str]
    work: Callable[[Sequence[int], Script], list[str]]
    own: Callable[[int], None]
    join: Callable[[int, list[str]], None]
    close: Callable[[], None]


def organize(parts: Parts, organizer: Script, pool: int, rng: random.Random) -> list[Script]:
    """The script of an organizer and those of its workers. At most ``pool - 1`` workers are alive at any time."""
    groups, own = _partition(parts.count, rng)
    style = rng.choice(STYLES)
    workers: list[Script] = []
    live: list[tuple[int, list[str]]] = []
    while groups or own or live:
        action = _choose(style, bool(groups) and len(live) < pool - 1, bool(own), bool(live), rng)
        if action == "fork":
            group = groups.pop(0)
            index = len(workers) + 1
            subquery = parts.subquery(group)
            organizer.say(f"<FORK-{index}>{subquery}</FORK-{index}>")
            worker = Script("worker", index, len(organizer.pieces), subquery)
            organizer.say("\n")
            workers.append(worker)
            live.append((index, parts.work(group, worker)))
        elif action == "own":
            parts.own(own.pop(0))
        else:
            parts.join(*live.pop(rng.randrange(len(live)) if rng.random() < 0.5 else 0))
    parts.close()
    return [organizer, *workers]


def _choose(style: str, can_fork: bool, can_work: bool, can_join: bool, rng: random.Random) -> str:
    """``batch`` forks first and joins last; ``mixed`` forks first; ``interleave`` chooses any action at any time."""
    order = ["fork"] * can_fork + ["own"] * can_work + ["join"] * can_join
    if style == "interleave" or (style == "mixed" and order[0] != "fork"):
        return rng.choice(order)
    return order[0]


def _partition(count: int, rng: random.Random) -> tuple[list[list[int]], list[int]]:
    """(one group of parts per worker, the organizer's own parts); 0 to :data:`MOST_FORKS` workers."""
    forks = rng.randint(0, min(MOST_FORKS, count))
    owners = list(range(forks)) + [rng.randint(0, forks) for _ in range(count - forks)]
    rng.shuffle(owners)
    split = [[part for part, owner in enumerate(owners) if owner == k] for k in range(forks + 1)]
    return split[:forks], split[forks]
