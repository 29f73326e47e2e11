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


class Guide(StrEnum):
    """What an agent may write, enforced while it draws (:mod:`asyncthink.episode.guides`)."""

    OFF = "off"  # anything; format errors end it
    LEGAL = "legal"  # no format error can be drawn, and tokens that run out lead to an answer
    PLAN = "plan"  # the organizer forks, thinks, joins all and answers, whether it was trained to or not


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
        guide: "off", "legal" (no format error can be drawn) or "plan" (the organizer forks, joins all, answers).
        forks: with the guide "plan", the number of its forks; None: two, and more if it writes more, up to pool - 1.
        depth: how many levels of workers there may be. 1: the organizer's workers do not fork (the paper). With 2 they
            may fork and join workers of their own, which do not fork; and so on. The pool counts all that live.

    Raises:
        ValueError: a value that is not one of these; answer="text" with mode="asyncthink", whose tags are needed, or
            with a guide, which leads to tags; forks without a plan, or more than the pool has workers.
    """

    mode: str = Mode.ASYNCTHINK
    pool: int = 4
    context: str = Context.SHARED
    join: str = JoinMode.EXACT
    aggregate: str = Aggregate.VOTE
    answer: str = AnswerForm.TAGS
    guide: str = Guide.OFF
    forks: int | None = None
    depth: int = 1

    def __post_init__(self) -> None:
        choices = {
            **{"mode": Mode, "context": Context, "join": JoinMode},
            **{"aggregate": Aggregate, "answer": AnswerForm, "guide": Guide},
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
        if self.answer == AnswerForm.TEXT and self.guide != Guide.OFF:
            raise ValueError(f"guide: expected 'off' with answer='text', which has no tags, got {str(self.guide)!r}")
        if self.depth < 1:
            raise ValueError(f"depth: expected at least 1 (workers that do not fork), got {self.depth}")
        if self.forks is not None:
            self._check_forks(self.forks)

    def _check_forks(self, forks: int) -> None:
        if self.guide != Guide.PLAN or self.mode != Mode.ASYNCTHINK:
            raise ValueError(f"forks: expected None without the guide 'plan' and an organizer, got {forks}")
        if not 1 <= forks <= self.pool - 1:
            raise ValueError(f"forks: expected 1 to {self.pool - 1} (the workers of pool {self.pool}), got {forks}")


def default_forms(trained: bool, mode: str, *, answer: str | None = None, guide: str | None = None) -> dict[str, str]:
    """``answer`` and ``guide`` of an episode, where they are not given.

    A model that was ``trained`` in the protocol, as its ``asyncthink.json`` tells, writes the tags by itself. Another
    one organizes by the guide "plan"; in the other modes its whole reply is its answer.

    >>> default_forms(False, "asyncthink")["guide"], default_forms(False, "sequential")["answer"]
    (<Guide.PLAN: 'plan'>, <AnswerForm.TEXT: 'text'>)
    """
    if answer is None:
        answer = AnswerForm.TAGS if trained or mode == Mode.ASYNCTHINK else AnswerForm.TEXT
    if guide is None:
        guide = Guide.OFF if trained or answer == AnswerForm.TEXT else Guide.PLAN
    return {"answer": answer, "guide": guide}


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
