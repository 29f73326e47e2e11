"""The pool on a double of a cluster: whatever dies and whenever, each job has one result, and they are in order."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncthink.integrations.actor_pool import ActorPool, LostActorError


class Double:
    """A cluster in which outcomes come in a random order, and the calls numbered in ``deaths`` lose their actor."""

    def __init__(self, deaths: set[int] = frozenset(), seed: int = 0, broken: set[int] = frozenset()) -> None:  # type: ignore[assignment]
        self.deaths, self.broken, self.random = deaths, broken, random.Random(seed)
        self.calls = 0
        self.alive: set[int] = set()
        self.outcomes: dict[int, Any] = {}
        self.done: list[tuple[int, Any]] = []  # (actor, job) in the order of submission
        self.made = 0
        self.silent = False  # no ticket gets an outcome

    def start(self, number: int) -> tuple[int, int]:
        self.made += 1
        self.alive.add(self.made)
        return self.made, self._call(self.made, "up", self.made in self.broken)

    def submit(self, actor: int, job: Any) -> int:
        self.done.append((actor, job))
        if actor not in self.alive:
            return self._ticket(LostActorError("dead before"))
        return self._call(actor, job() if callable(job) else ("did", job))

    def wait(self, tickets: list[int], timeout: float | None) -> int | None:
        return None if self.silent else self.random.choice(tickets)

    def result(self, ticket: int) -> Any:
        outcome = self.outcomes.pop(ticket)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def kill(self, actor: int) -> None:
        self.alive.discard(actor)

    def _call(self, actor: int, outcome: Any, broken: bool = False) -> int:
        self.calls += 1
        if self.calls in self.deaths:
            self.alive.discard(actor)
            outcome = LostActorError("lost")
        return self._ticket(ValueError("no such model") if broken else outcome)

    def _ticket(self, outcome: Any) -> int:
        ticket = len(self.outcomes) + 1000 * self.calls + len(self.done)
        self.outcomes[ticket] = outcome
        return ticket


def quiet(message: str) -> None:
    pass


@given(
    jobs=st.integers(0, 12), size=st.integers(1, 4), dies=st.lists(st.booleans(), max_size=30), seed=st.integers(0, 99)
)
def test_each_job_has_one_result_in_order_whatever_dies(jobs: int, size: int, dies: list[bool], seed: int) -> None:
    cluster = Double({call for call, dead in enumerate(dies, 1) if dead}, seed)
    pool = ActorPool(cluster, size, attempts=31, say=quiet)
    seen: list[int] = []
    for _ in range(2):  # and the pool can be used again
        results = pool.run(list(range(jobs)), lambda job, result: seen.append(job))
        assert results == [("did", job) for job in range(jobs)]
    assert sorted(seen) == sorted(2 * list(range(jobs))), "told of each job once"
    assert pool.everywhere("new weights") == [("did", "new weights")] * size
    assert pool.replaced == cluster.made - size
    assert len(cluster.alive) <= size
    pool.close()
    assert not cluster.alive


def test_a_free_actor_pulls_the_next_job() -> None:
    cluster = Double()
    pool = ActorPool(cluster, 2)
    cluster.wait = lambda tickets, timeout: tickets[-1]  # type: ignore[method-assign] # the first job's outcome comes last
    pool.run(["slow", *range(5)])
    slow = [job for actor, job in cluster.done if actor == cluster.done[0][0]]
    assert slow == ["slow"], "all others were taken by the other actor"


def test_a_lost_job_goes_first_and_is_told(recwarn: pytest.WarningsRecorder) -> None:
    cluster, told = Double(deaths={2}), list[str]()
    pool = ActorPool(cluster, 1, say=told.append)
    pool.run(["a", "b", "c"])
    assert [job for _, job in cluster.done] == ["a", "a", "b", "c"]
    assert told == ["actor 0 died, a again: lost"]
    ActorPool(Double(deaths={2}), 1).run(["a"])
    (warning,) = recwarn
    assert str(warning.message) == "actor 0 died, a again: lost"


def test_a_job_that_kills_is_given_up() -> None:
    cluster = Double(deaths={3, 5, 7})  # job "a", after each start of its actor
    pool = ActorPool(cluster, 1, say=quiet)
    pool.run(["fine"])
    with pytest.raises(RuntimeError, match=r"^a: 3 actors died over this: lost$"):
        pool.run(["a", "b"])
    assert "b" not in [job for _, job in cluster.done]
    assert pool.run(["b"]) == [("did", "b")], "the pool can be used again"


def test_what_a_job_raises_is_raised_after_those_that_run() -> None:
    def fails() -> Any:
        return KeyError("question")

    cluster = Double()
    pool = ActorPool(cluster, 2)
    with pytest.raises(KeyError, match="question"):
        pool.run([fails, *range(6)])
    assert len(cluster.done) < 7, "no further job began"
    assert not cluster.outcomes, "none is left that a later call would take for its own"
    assert pool.run([1]) == [("did", 1)]


def test_what_a_listener_raises_is_raised() -> None:
    def done(job: int, result: Any) -> None:
        raise LookupError(f"at {job}")

    cluster = Double()
    pool = ActorPool(cluster, 1)
    with pytest.raises(LookupError, match="at 0"):
        pool.run([1, 2], done)
    assert [job for _, job in cluster.done] == [1]


def test_an_actor_that_cannot_start_is_one_error_and_leaves_none_behind() -> None:
    cluster = Double(broken={1, 2})
    with pytest.raises(ValueError, match=r"^no such model$"):
        ActorPool(cluster, 2)
    assert not cluster.alive
    cluster = Double(deaths=set(range(1, 10)))
    with pytest.raises(RuntimeError, match=r"^actor \d: 3 died while they started: lost$"):
        ActorPool(cluster, 2, say=quiet)
    assert not cluster.alive


def test_a_cluster_without_room_is_not_waited_for_for_ever() -> None:
    cluster = Double()
    cluster.silent = True
    with pytest.raises(RuntimeError, match=r"^actors 0, 1: expected one of them to come up within 5 s, got none"):
        ActorPool(cluster, 2, patience=5)
    assert not cluster.alive


def test_an_interrupt_ends_the_actors() -> None:
    def interrupts(job: int, result: Any) -> None:
        raise KeyboardInterrupt

    cluster = Double()
    pool = ActorPool(cluster, 2)
    with pytest.raises(KeyboardInterrupt):
        pool.run([1, 2, 3], interrupts)
    assert not cluster.alive
    with pytest.raises(RuntimeError, match="pool: expected one that is open, got a closed one"):
        pool.run([1])


@pytest.mark.parametrize(("size", "attempts"), [(0, 1), (1, 0)])
def test_sizes_are_checked(size: int, attempts: int) -> None:
    with pytest.raises(ValueError, match=r"(size|attempts): expected at least 1, got 0"):
        ActorPool(Double(), size, attempts=attempts)
