"""How an episode is organized, and how independent answers become one. No torch, no tokenizer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

MODES = ("asyncthink", "sequential", "parallel")
CONTEXTS = ("shared", "isolated")
JOINS = ("exact", "append", "link")
AGGREGATES = ("vote", "union")


@dataclass(frozen=True, slots=True)
class Options:
    """How an episode is organized.

    Args:
        mode: "asyncthink" (organizer and workers), "sequential" (one trace), "parallel" (``pool`` independent traces).
        pool: pool capacity c: the organizer and at most c - 1 live workers.
        context: "shared" (a worker sees the organizer's tokens up to its fork) or "isolated" (its prompt alone).
        join: how a return enters the organizer: "exact", "append" or "link".
        aggregate: parallel answers: "vote" (most frequent, earliest wins a tie) or "union" (distinct lines, in order).

    Raises:
        ValueError: a value that is not one of these.
    """

    mode: str = "asyncthink"
    pool: int = 4
    context: str = "shared"
    join: Literal["exact", "append", "link"] = "exact"
    aggregate: str = "vote"

    def __post_init__(self) -> None:
        for name, allowed in (("mode", MODES), ("context", CONTEXTS), ("join", JOINS), ("aggregate", AGGREGATES)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}: expected one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if self.pool < 1:
            raise ValueError(f"pool: expected at least 1 (the organizer), got {self.pool}")


def combine(answers: Sequence[str], how: str) -> str:
    """One answer from several, by "vote" or "union" (see :class:`Options`).

    >>> combine(["8", "7", "7"], "vote"), combine(["a", "b\\na"], "union")
    ('7', 'a\\nb')
    """
    if how == "vote":
        votes = Counter(answer.strip() for answer in answers)
        return max(votes, key=lambda answer: votes[answer])  # max keeps the earliest of a tie
    lines = (line.strip() for answer in answers for line in answer.splitlines())
    return "\n".join(dict.fromkeys(line for line in lines if line))
