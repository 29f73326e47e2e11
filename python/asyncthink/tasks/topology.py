"""Random organizer topologies over the parts of a search space: who searches what, when forks and joins happen.

No topology is baked in: partitions, interleaving and join order are drawn from a seed. The draw leans towards what is
fast (three workers forked at once, the largest part first, the organizer searching the rest, the earliest finisher
joined first), so that the most likely organizer is a good one.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from asyncthink.tasks.script import Script
from asyncthink.tasks.search import Writer, search_as_worker

MOST_FORKS = 8
_STYLES = {"batch": 0.6, "interleave": 0.2, "reuse": 0.2}
_TOKENS_PER_PAIR = 25  # rough length of a searched pair and of a fork, to guess who finishes first
_TOKENS_PER_FORK = 14


@dataclass(frozen=True, slots=True)
class _Live:
    index: int
    returned: list[str]
    ready: int  # guessed time of its return


def organize(
    question: str, numbers: tuple[int, ...], target: int, asked: int, pool: int, rng: random.Random
) -> list[Script]:
    """An organizer's script and its workers', in a random topology with at most ``pool - 1`` workers un-joined.

    The organizer stops as soon as it holds ``asked`` solutions; workers still searching are then left behind.
    """
    style = rng.choices(list(_STYLES), list(_STYLES.values()))[0]
    groups, own = _partition(numbers[:-1], style, pool - 1, rng)
    writer = Writer(Script("organizer"), asked)
    workers: list[Script] = []
    live: list[_Live] = []
    while not writer.done and (groups or own or live):
        action = _choose(style, bool(groups) and len(live) < pool - 1, bool(own), bool(live), rng)
        if action == "fork":
            starts = groups.pop(0)
            index = len(workers) + 1
            subquery = f"{question} start:{','.join(map(str, starts))}"
            writer.script.say(f"<FORK-{index}>{subquery}</FORK-{index}>")
            worker = Script("worker", index, len(writer.script.pieces), subquery)
            writer.script.say("\n")
            workers.append(worker)
            pairs = sum(len(numbers) - 1 - numbers.index(start) for start in starts)
            returned = search_as_worker(numbers, target, starts, worker)
            live.append(_Live(index, returned, index * _TOKENS_PER_FORK + pairs * _TOKENS_PER_PAIR))
        elif action == "search":
            writer.search(numbers, target, own.pop(0))
        else:
            first = min(live, key=lambda worker: worker.ready)
            joined = first if rng.random() < 0.7 else rng.choice(live)
            live.remove(joined)
            writer.join(joined.index, joined.returned)
    writer.answer()
    return [writer.script, *workers]


def _choose(style: str, can_fork: bool, can_search: bool, can_join: bool, rng: random.Random) -> str:
    order = ["fork"] * can_fork + ["search"] * can_search + ["join"] * can_join
    if style == "interleave":
        weights = {"fork": 1.5, "search": 1.0, "join": 0.3}
        return rng.choices(order, [weights[action] for action in order])[0]
    if style == "reuse" and order[0] != "fork":
        return rng.choice(order)
    return order[0]


def _partition(
    starts: tuple[int, ...], style: str, most_live: int, rng: random.Random
) -> tuple[list[list[int]], list[int]]:
    """(one group of starts per worker, the organizer's own starts); starts come with the largest part first."""
    if style == "reuse":
        own_count = rng.choice([0, 0, 1, 2])
        own = sorted(rng.sample(starts, own_count))
        groups = [[start] for start in starts if start not in own]
        rng.shuffle(groups)
        return groups[:MOST_FORKS], own
    count = min(most_live, rng.choices([1, 2, 3], [0.05, 0.15, 0.8])[0], len(starts))
    if rng.random() < 0.65:
        return _balanced(starts, count)
    owners = list(range(count)) + [rng.randint(0, count) for _ in starts[count:]]
    rng.shuffle(owners)
    parts = [[start for start, owner in zip(starts, owners, strict=True) if owner == k] for k in range(count + 1)]
    return parts[:count], parts[count]


def _balanced(starts: tuple[int, ...], count: int) -> tuple[list[list[int]], list[int]]:
    """Parts of about equal work: the first starts have the most pairs, so the last worker also takes the last start."""
    groups, own = [[start] for start in starts[:count]], list(starts[count:])
    if len(own) > 1:
        groups[-1].append(own.pop())
    return groups, own
