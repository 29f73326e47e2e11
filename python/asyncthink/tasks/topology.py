"""Random topologies of agents over the parts of a search: which agent searches what, when it forks and joins.

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

    ``organized`` is for a worker that organizes its group itself: the parts of the group, numbered anew, whose
    functions write the worker's script and end it with a return, and the list that its results are added to. None: such
    a task's workers do not fork.

    ``sizes``, where given, asks for a short critical path: how much, above 0, is written for each part. All workers
    that the pool allows are forked first and joined last, and no agent has much more to write than another.
    """

    count: int
    subquery: Callable[[Sequence[int]], str]
    work: Callable[[Sequence[int], Script], list[str]]
    own: Callable[[int], None]
    join: Callable[[int, list[str]], None]
    close: Callable[[], None]
    organized: Callable[[Sequence[int], Script], tuple[Parts, list[str]]] | None = None
    sizes: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class _Live:
    """A worker that nobody has joined yet, with its results; it and its own workers are at most ``agents``."""

    index: int
    results: list[str]
    agents: int


def organize(parts: Parts, organizer: Script, pool: int, rng: random.Random, depth: int = 1) -> list[Script]:
    """The script of an organizer and those of its workers, each behind its parent's.

    At most ``pool - 1`` workers are alive at any time. With a ``depth`` above 1 a worker of several parts may organize
    them itself; it gets a share of the pool, which it and its own workers do not exceed.
    """
    groups, own = _even(parts, pool) if parts.sizes else _partition(parts.count, rng)
    style = "batch" if parts.sizes else rng.choice(STYLES)
    scripts, forks = [organizer], 0
    live: list[_Live] = []
    while groups or own or live:
        room = pool - 1 - sum(worker.agents for worker in live)
        action = choose(style, bool(groups) and room > 0, bool(own), bool(live), rng)
        if action == "fork":
            group, forks = groups.pop(0), forks + 1
            subquery = parts.subquery(group)
            organizer.say(f"<FORK-{forks}>{subquery}</FORK-{forks}>")
            worker = Script("worker", forks, len(organizer.pieces), subquery)
            organizer.say("\n")
            added, results, agents = _delegate(parts, group, worker, room, rng, depth)
            for script in added[1:]:
                script.parent += len(scripts)
            scripts += added
            live.append(_Live(forks, results, agents))
        elif action == "own":
            parts.own(own.pop(0))
        else:
            joined = live.pop(rng.randrange(len(live)) if rng.random() < 0.5 else 0)
            parts.join(joined.index, joined.results)
    parts.close()
    return scripts


def _delegate(
    parts: Parts, group: Sequence[int], worker: Script, room: int, rng: random.Random, depth: int
) -> tuple[list[Script], list[str], int]:
    """(scripts of a worker and of its own, its results, the most agents of these that live), at most ``room`` agents.

    Half of the workers that could organize their group do.
    """
    may = depth > 1 and room > 1 and len(group) > 1 and parts.organized is not None
    if not may or parts.organized is None or rng.random() < 0.5:
        return [worker], parts.work(group, worker), 1
    inner, results = parts.organized(group, worker)
    share = rng.randint(2, room)
    return organize(inner, worker, share, rng, depth - 1), results, share


def choose(style: str, can_fork: bool, can_work: bool, can_join: bool, rng: random.Random) -> str:
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
    return _split(owners, forks)


def _even(parts: Parts, pool: int) -> tuple[list[list[int]], list[int]]:
    """The same with as many workers as the pool allows: parts are dealt longest first, each to who has least to write.

    Of agents that have equally much the one that begins first is dealt to: a worker that is forked earlier, the
    organizer, who writes the forks and joins, too, last (longest processing time first: Graham, SIAM J. Appl. Math.
    17 (2), 1969).
    """
    forks = min(pool - 1, parts.count)
    written, owners = [0] * (forks + 1), [0] * parts.count
    for part in sorted(range(parts.count), key=lambda part: -parts.sizes[part]):
        owners[part] = written.index(min(written))
        written[owners[part]] += parts.sizes[part]
    return _split(owners, forks)


def _split(owners: Sequence[int], forks: int) -> tuple[list[list[int]], list[int]]:
    split = [[part for part, owner in enumerate(owners) if owner == k] for k in range(forks + 1)]
    return split[:forks], split[forks]
