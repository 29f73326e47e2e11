"""How an episode is organized, and how independent answers become one. No torch, no tokenizer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Mode(StrEnum):
    """Who works on a question."""

    ASYNCTHINK = "asyncthink"  # an organizer and its workers
    SEQUENTIAL = "sequential"  # one agent alone
    PARALLEL = "parallel"  # independent agents whose answers become one


class Context(StrEnum):
    """What a worker sees."""

    SHARED = "shared"  # the organizer's tokens up to its fork
    ISOLATED = "isolated"  # its own prompt alone


class JoinMode(StrEnum):
    """How a worker's return enters the organizer's context."""

    EXACT = "exact"  # its tokens are computed again
    APPEND = "append"  # the worker's K, rotated to the new positions, and V are copied
    LINK = "link"  # the worker's K and V are read in place


class Aggregate(StrEnum):
    """How the answers of independent agents become one."""

    VOTE = "vote"  # the most frequent one; the earliest wins a tie
    UNION = "union"  # their distinct lines, in order


class AnswerForm(StrEnum):
    """Where an agent's answer stands in what it writes."""

    TAGS = "tags"  # between <ANSWER> and </ANSWER>; the prompt says so
    TEXT = "text"  # the whole reply; the prompt is the conversation alone


@dataclass(frozen=True, slots=True)
class Options:
    """How an episode is organized. Strings become members of their enumeration.

    Args:
        mode: "asyncthink" (organizer and workers), "sequential" (one trace), "parallel" (``pool`` independent traces).
        pool: pool capacity c: the organizer and at most c - 1 live workers.
        context: "shared" (a worker sees the organizer's tokens up to its fork) or "isolated" (its prompt alone).
        join: how a return enters the organizer: "exact", "append" or "link".
        aggregate: parallel answers: "vote" (most frequent, earliest wins a tie) or "union" (distinct lines, in order).
        answer: "tags" (an agent answers between answer tags) or "text" (sequential and parallel modes: its whole reply
            is the answer, the prompt has no instructions, and tags are text).

    Raises:
        ValueError: a value that is not one of these, or answer="text" with mode="asyncthink", whose tags are needed.
    """

    mode: str = Mode.ASYNCTHINK
    pool: int = 4
    context: str = Context.SHARED
    join: str = JoinMode.EXACT
    aggregate: str = Aggregate.VOTE
    answer: str = AnswerForm.TAGS

    def __post_init__(self) -> None:
        choices = {
            **{"mode": Mode, "context": Context, "join": JoinMode},
            **{"aggregate": Aggregate, "answer": AnswerForm},
        }
        for name, choice in choices.items():
            try:
                object.__setattr__(self, name, choice(getattr(self, name)))
            except ValueError:
                expected = ", ".join(choice)
                raise ValueError(f"{name}: expected one of {expected}, got {getattr(self, name)!r}") from None
        if self.pool < 1:
            raise ValueError(f"pool: expected at least 1 (the organizer), got {self.pool}")
        if self.answer == AnswerForm.TEXT and self.mode == Mode.ASYNCTHINK:
            raise ValueError(
                "answer: expected 'tags' with mode='asyncthink' (the organizer's text holds its forks and joins), "
                "got 'text'"
            )


def combine(answers: Sequence[str], how: str) -> str:
    """One answer from several, by "vote" or "union" (see :class:`Aggregate`).

    >>> combine(["8", "7", "7"], "vote"), combine(["a", "b\\na"], "union")
    ('7', 'a\\nb')
    """
    if how == Aggregate.VOTE:
        votes = Counter(answer.strip() for answer in answers)
        return max(votes, key=lambda answer: votes[answer])  # max returns the earliest of a tie
    lines = (line.strip() for answer in answers for line in answer.splitlines())
    return "\n".join(dict.fromkeys(line for line in lines if line))
