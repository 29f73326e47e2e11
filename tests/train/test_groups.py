"""Which groups of a step are trained on, in one process and in several."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from asyncthink.episode.records import Episode, Trace
from asyncthink.tasks.rewards import Reward
from asyncthink.train.distributed import World
from asyncthink.train.groups import DrawnGroups, draw_groups
from asyncthink.train.rollout import Rollout


def group(name: int, learns: bool) -> list[Rollout]:
    def rollout(advantage: float) -> Rollout:
        episode = Episode(str(name), "sequential", traces=[Trace(0, "solo")])
        return Rollout(episode, Reward(1.0, 0.0, 0.0, False, 1.0), (advantage,))

    return [rollout(0.5 * learns), rollout(-0.5 * learns)]


class Threads:
    """The worlds of several processes, as threads of this one."""

    def __init__(self, size: int) -> None:
        self.size, self.barrier, self.parts = size, threading.Barrier(size), list[list[Any]]([[]] * size)

    def world(self, rank: int) -> Any:
        threads = self

        class Rank:
            def mine(self, items: Sequence[Any]) -> Sequence[Any]:
                return World(rank, threads.size).mine(items)

            def gather(self, items: list[Any]) -> list[Any]:
                threads.parts[rank] = items
                threads.barrier.wait()
                together = [item for part in threads.parts for item in part]
                threads.barrier.wait()
                return together

        return Rank()


def draw(script: Sequence[bool], size: int, wanted: int, first: int, rounds: int) -> list[DrawnGroups]:
    """Question k of a step differs where ``script[k]``."""
    threads = Threads(size)

    def process(rank: int) -> DrawnGroups:
        asked: list[int] = []

        def ask(count: int, number: int) -> Any:
            asked.extend(range(len(asked), len(asked) + count))
            return asked[-count:]

        def roll(questions: Any) -> list[list[Rollout]]:
            return [group(question, script[question]) for question in questions]

        return draw_groups(threads.world(rank), ask, roll, wanted, first, rounds)

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(process, range(size)))


def names(groups: list[list[Rollout]]) -> list[int]:
    return [int(rollouts[0].episode.question) for rollouts in groups]


LONG = [False] * 100


def test_groups_that_have_nothing_to_teach_are_replaced() -> None:
    script = [False, True, False, True, False, True, True, True, *LONG]
    (made,) = draw(script, 1, wanted=4, first=4, rounds=3)
    assert names([rollouts for _, rollouts in made.trained]) == [1, 3, 5, 6]  # 4 drawn, 2 again, 1 again
    assert (made.drawn, made.differing, made.trained_count) == (7, 4, 4)
    assert made.metrics() == {"groups": 7, "groups_trained": 4, "groups_silent": 1 - 4 / 7}
    (once,) = draw(script, 1, wanted=4, first=4, rounds=1)
    assert names([rollouts for _, rollouts in once.trained]) == [1, 3]


def test_of_more_than_wanted_the_first_are_trained() -> None:
    (made,) = draw([True] * 12, 1, wanted=8, first=12, rounds=3)
    assert names([rollouts for _, rollouts in made.trained]) == list(range(8))
    batches = made.minibatches(2)
    assert [names([batch[::2]])[0] for batch in batches] == [0, 1]
    assert [len(batch) for batch in batches] == [8, 8]


def test_fewer_groups_than_minibatches_make_fewer_steps() -> None:
    (made,) = draw([False, True, *LONG], 1, wanted=4, first=4, rounds=1)
    assert len(made.minibatches(2)) == 1
    (none,) = draw(LONG, 1, wanted=4, first=4, rounds=2)
    assert none.minibatches(2) == [] and none.usable and none.drawn == 8


@given(st.lists(st.booleans(), min_size=40, max_size=40), st.integers(2, 3), st.integers(1, 4), st.integers(1, 3))
def test_the_number_of_processes_changes_nothing(script: list[bool], size: int, wanted: int, rounds: int) -> None:
    (alone,) = draw(script, 1, wanted, wanted + 2, rounds)
    several = draw(script, size, wanted, wanted + 2, rounds)
    assert {(made.drawn, made.differing, made.trained_count) for made in several} == {
        (alone.drawn, alone.differing, alone.trained_count)
    }
    expected = [names([batch[k : k + 1] for k in range(0, len(batch), 2)]) for batch in alone.minibatches(2)]
    together = [
        sorted(
            names(
                [
                    batch[k : k + 1]
                    for made in several
                    for batch in [made.minibatches(2)[number]]
                    for k in range(0, len(batch), 2)
                ]
            )
        )
        for number in range(len(expected))
    ]
    assert together == [sorted(one) for one in expected]
