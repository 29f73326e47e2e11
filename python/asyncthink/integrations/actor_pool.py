"""Jobs on a pool of actors: a free actor pulls the next job, an actor that dies is replaced. No Ray, no torch.

Results are in the order of the jobs, and each job has one: a job counts when its result has arrived, so one that was
lost with its actor is handed out again. A job must give the same result whoever does it.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

Say = Callable[[str], None]


class LostActorError(Exception):
    """The process of an actor is gone, and with it what it was doing. The message is the reason, one line."""


class Cluster(Protocol):
    """What a pool needs of the system that runs its actors.

    Actors and tickets are opaque. ``str(job)`` says in messages what the job is.
    """

    def start(self, number: int) -> tuple[Any, Any]:
        """A new actor, and the ticket of its start."""

    def submit(self, actor: Any, job: Any) -> Any:
        """Let an actor do a job; returns a ticket at once."""

    def wait(self, tickets: Sequence[Any], timeout: float | None) -> Any | None:
        """One ticket whose outcome is there; None after ``timeout`` seconds without any."""

    def result(self, ticket: Any) -> Any:
        """The outcome of a ticket that is there. Raises what the job raised; LostActorError if it was lost."""

    def kill(self, actor: Any) -> None:
        """End an actor's process, if it is alive."""


_LOST = object()


@dataclass(frozen=True, slots=True)
class _Task:
    """What an actor is busy with: its start (``job`` is None) or a job."""

    actor: int
    job: int | None


class ActorPool:
    """``size`` actors of a cluster. Made by one thread, used by one thread.

    Args:
        attempts: how many actors may die over the same job, or in a row over their start, before the pool gives up.
        patience: seconds in which at least one actor must come up while no other one works.
        say: told, in a line, when an actor is replaced; default: a RuntimeWarning.

    Raises:
        ValueError: a size or a number of attempts below 1.
        RuntimeError: no actor comes up within ``patience``; ``attempts`` of them die while they start.
        Exception: what an actor's start raises.
    """

    def __init__(
        self, cluster: Cluster, size: int, *, attempts: int = 3, patience: float = 600.0, say: Say | None = None
    ) -> None:
        for name, value in (("size", size), ("attempts", attempts)):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        self.cluster, self.size, self.attempts, self.patience = cluster, size, attempts, patience
        self.replaced = 0  # actors that died so far
        self._say = say if say is not None else _warn
        self._busy: dict[Any, _Task] = {}  # by ticket
        self._actors: list[Any] = []
        self._stillborn = 0  # actors in a row that died while they started
        self._closed = False
        try:
            for number in range(size):
                self._actors.append(None)
                self._start(number)
            while self._busy:
                self._started(*self._next())
        except BaseException:
            self.close()
            raise

    def run(self, jobs: Sequence[Any], done: Callable[[int, Any], None] = lambda job, result: None) -> list[Any]:
        """The results of all jobs, in their order.

        A free actor takes the next job, the one with the lowest number first. ``done`` is called with (number of the
        job, result) as results arrive, once for each job.

        Raises:
            Exception: what a job or ``done`` raised first. No further job begins then, and those that run are awaited
                and dropped, so the pool can be used again.
            RuntimeError: ``attempts`` actors died over the same job, or while they started.
        """
        return self._work(jobs, done, lambda actor, todo: min(todo, default=None))

    def everywhere(self, job: Any) -> list[Any]:
        """Let every actor do the job; returns their results. One that dies is replaced, and its successor does it."""
        own = lambda actor, todo: actor if actor in todo else None  # noqa: E731
        return self._work([job] * self.size, lambda job, result: None, own)

    def close(self) -> None:
        """End all actors."""
        self._closed = True
        for actor in self._actors:
            if actor is not None:
                self.cluster.kill(actor)
        self._actors, self._busy = [], {}

    def _work(
        self,
        jobs: Sequence[Any],
        done: Callable[[int, Any], None],
        choose: Callable[[int, Iterable[int]], int | None],
    ) -> list[Any]:
        if self._closed:
            raise RuntimeError("pool: expected one that is open, got a closed one")
        todo, results = set(range(len(jobs))), dict[int, Any]()
        lost: Counter[int | None] = Counter()  # by job
        error: Exception | None = None
        try:
            while len(results) < len(jobs) and not (error and not self._working):
                for actor in self._free() if error is None else ():
                    job = choose(actor, todo)
                    if job is not None:
                        todo.remove(job)
                        self._busy[self.cluster.submit(self._actors[actor], jobs[job])] = _Task(actor, job)
                ticket, task = self._next()
                try:
                    if task.job is None:
                        self._started(ticket, task)
                        continue
                    result = self._result(ticket, task, jobs[task.job], lost)
                    if result is _LOST:
                        todo.add(task.job)
                    else:
                        results[task.job] = result
                        done(task.job, result)
                except Exception as failure:
                    error = error or failure
        except BaseException:  # jobs may be under way that nobody awaits
            self.close()
            raise
        if error is not None:
            raise error
        return [results[job] for job in range(len(jobs))]

    @property
    def _working(self) -> bool:
        return any(task.job is not None for task in self._busy.values())

    def _free(self) -> list[int]:
        busy = {task.actor for task in self._busy.values()}
        return [actor for actor in range(self.size) if actor not in busy]

    def _next(self) -> tuple[Any, _Task]:
        """The next outcome that is there, and what it is of."""
        ticket = self.cluster.wait(list(self._busy), None if self._working else self.patience)
        if ticket is None:
            starting = ", ".join(str(task.actor) for task in self._busy.values())
            raise RuntimeError(
                f"actors {starting}: expected one of them to come up within {self.patience:g} s, got none: "
                "are there enough free CPUs and GPUs?"
            )
        return ticket, self._busy.pop(ticket)

    def _result(self, ticket: Any, task: _Task, job: Any, lost: Counter[int | None]) -> Any:
        """The result of a job; _LOST if its actor died, for which there is another one then."""
        try:
            return self.cluster.result(ticket)
        except LostActorError as death:
            lost[task.job] += 1
            self._replace(task.actor, f"actor {task.actor} died, {job} again: {death}")
            if lost[task.job] >= self.attempts:
                raise RuntimeError(f"{job}: {lost[task.job]} actors died over this: {death}") from death
            return _LOST

    def _started(self, ticket: Any, task: _Task) -> None:
        """Read the outcome of a start. Raises what it raised, RuntimeError after too many deaths."""
        try:
            self.cluster.result(ticket)
            self._stillborn = 0
        except LostActorError as death:
            self._stillborn += 1
            self._replace(task.actor, f"actor {task.actor} died while it started: {death}")
            if self._stillborn >= self.attempts:
                raise RuntimeError(f"actor {task.actor}: {self._stillborn} died while they started: {death}") from death
        except Exception:
            self._start(task.actor)
            raise

    def _replace(self, number: int, reason: str) -> None:
        self.replaced += 1
        self._say(reason)
        self._start(number)

    def _start(self, number: int) -> None:
        if self._actors[number] is not None:
            self.cluster.kill(self._actors[number])
        self._actors[number], ticket = self.cluster.start(number)
        self._busy[ticket] = _Task(number, None)


def _warn(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=2)
