"""Random action sequences of an organizer, and whether a trace follows one.

Models that are asked for a trace write the same one or two structures again and again. So the cold start of AsyncThink
(arXiv 2510.26658, section 3.1) draws the organizer's actions at random and asks for a trace that follows them.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from asyncthink.protocol.tags import Fork, Join
from asyncthink.tasks.topology import STYLES, choose
from asyncthink.train.traces import WrittenTrace

THINK, ANSWER = "THINK", "ANSWER"
MOST_THOUGHTS = 2


def check_forks(forks: tuple[int, int], pool: int) -> None:
    """Raises ValueError for a range of forks that is none, and for a pool without workers."""
    if not 1 <= forks[0] <= forks[1] <= 999:
        raise ValueError(f"forks: expected 1 <= least <= most <= 999, got {forks[0]} and {forks[1]}")
    if pool < 2:
        raise ValueError(f"pool: expected at least 2 (an organizer and a worker), got {pool}")


def sample_actions(rng: random.Random, pool: int, forks: tuple[int, int]) -> tuple[str, ...]:
    """Actions of an organizer with between ``forks[0]`` and ``forks[1]`` workers, at most ``pool - 1`` at a time.

    Every fork is joined, in any order. THINK stands for work of the organizer's own, at most twice.

    >>> sample_actions(random.Random(1), pool=4, forks=(2, 3))
    ('FORK-1', 'FORK-2', 'THINK', 'JOIN-1', 'JOIN-2', 'ANSWER')
    """
    style, count, thoughts = rng.choice(STYLES), rng.randint(*forks), rng.randint(0, MOST_THOUGHTS)
    actions: list[str] = []
    live: list[int] = []
    forked = 0
    while True:
        can_think = thoughts > 0 and actions[-1:] != [THINK]
        if not (forked < count or live or can_think):
            return (*actions, ANSWER)
        action = choose(style, forked < count and len(live) < pool - 1, can_think, bool(live), rng)
        if action == "fork":
            forked += 1
            live.append(forked)
            actions.append(f"FORK-{forked}")
        elif action == "join":
            actions.append(f"JOIN-{live.pop(rng.randrange(len(live)))}")
        else:
            thoughts -= 1
            actions.append(THINK)


def actions_of(trace: WrittenTrace) -> tuple[str, ...]:
    """What the organizer of a trace does: THINK wherever it writes a word between two tags."""
    actions: list[str] = []
    end = 0
    for act in trace.acts()[0]:
        if any(map(str.isalnum, trace.agents[0].text[end : act.span.start])):
            actions.append(THINK)
        end = act.span.stop
        name = "FORK" if isinstance(act, Fork) else "JOIN"
        actions.append(f"{name}-{act.index}" if isinstance(act, Fork | Join) else ANSWER)
    return tuple(actions)


def follows(written: Sequence[str], asked: Sequence[str]) -> bool:
    """Whether the written actions are the asked ones; it may think where it was not asked to.

    >>> follows(["FORK-1", "THINK", "JOIN-1", "ANSWER"], ["FORK-1", "JOIN-1", "ANSWER"])
    True
    >>> follows(["FORK-1", "JOIN-1", "ANSWER"], ["FORK-1", "THINK", "JOIN-1", "ANSWER"])
    False
    """
    rest = list(asked)
    for action in written:
        if rest and action == rest[0]:
            rest.pop(0)
        elif action != THINK:
            return False
    return not rest
