"""The final answer of an episode of any mode, and its grade. Training and evaluation share both. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any, Protocol, runtime_checkable

from asyncthink.episode.options import Aggregate, combine
from asyncthink.episode.records import Episode
from asyncthink.tasks import Task


@runtime_checkable
class Unites(Protocol):
    """A task that can unite the answers of several agents."""

    def union(self, puzzle: Any, answers: Sequence[str]) -> str:
        """One answer that holds the correct results of all ``answers``, made without knowing a solution."""


def grade(task: Task, puzzle: Any, episode: Episode, aggregate: str | None = None) -> float:
    """``task.verify`` of :func:`final_answer`: the correct share in [0, 1], 0 without an answer.

    Raises ValueError as :func:`final_answer` does, and if ``task.verify`` raises or does not return a number; the
    message names the task and the answer. An ImportError is passed on unchanged.
    """
    answer = final_answer(task, puzzle, episode, aggregate)
    try:
        share = task.verify(puzzle, answer)
    except ImportError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"task: {task.name} cannot grade the answer {answer!r:.80}: {reason}") from error
    if not isinstance(share, Real):
        raise ValueError(f"task: expected a number from verify of {task.name}, got {share!r:.80}")
    return float(share)


def final_answer(task: Task, puzzle: Any, episode: Episode, aggregate: str | None = None) -> str | None:
    """The episode's answer; None if no agent gave one.

    For "asyncthink" and "sequential" it is the answer of the one agent that gives it. For "parallel" ``aggregate`` says
    how the answers of the traces become one:

    * "union": the task's own union (:class:`Unites`). Countdown keeps each expression that evaluates to the target.
      Arithmetic can be checked without a solution, so wrong guesses of one trace cannot displace another's solution.
    * "vote": the most frequent text; in a tie the earliest trace's (AsyncThink, arXiv 2510.26658, section 4.1).
    * None: "union" if the task has one and asks for more than one result, else "vote".

    Raises:
        ValueError: another value, or "union" for a task without one.
    """
    how = how_to_aggregate(task, aggregate)
    if episode.mode != "parallel":
        return episode.answer
    answers = [trace.returned for trace in episode.traces if trace.returned is not None]
    if not answers:
        return None
    return task.union(puzzle, answers) if how == "union" and isinstance(task, Unites) else combine(answers, "vote")


def how_to_aggregate(task: Task, aggregate: str | None) -> str:
    """The "union" or "vote" that ``aggregate`` stands for with this task (see :func:`final_answer`)."""
    if aggregate is None:
        return "union" if isinstance(task, Unites) and task.asked > 1 else "vote"
    if aggregate not in tuple(Aggregate):
        raise ValueError(f"aggregate: expected one of {', '.join(Aggregate)}, got {aggregate!r}")
    if aggregate == "union" and not isinstance(task, Unites):
        raise ValueError(f"aggregate: expected vote for {task.name}, whose answers cannot be united, got 'union'")
    return aggregate
