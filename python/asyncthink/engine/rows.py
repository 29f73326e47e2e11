"""The rows of a step: which tokens they are, whose logits are wanted, and the tokens that are drawn from these.

Letters: N rows whose agents draw, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from asyncthink.engine.jobs import Job, Participant
from asyncthink.engine.sampling import drawable
from asyncthink.engine.scheduler import Work

#: The agents that draw in a step, with their jobs, in the order of the logits' rows.
Drawing = Sequence[tuple[Job, Participant]]
#: (token, log-probability) for each row of logits [N, V], whose jobs and agents are given.
Draw = Callable[[Tensor, Sequence[Job], Sequence[Participant]], Sequence[tuple[int, float]]]


@dataclass(slots=True)
class Rows:
    """The rows of one step.

    Attributes:
        tokens: of all rows.
        drawing: the agents that draw; drawn: the rows of their last tokens.
        scoring: the agents that score their tokens; spans: the rows of each of them.
    """

    tokens: list[int] = field(default_factory=list)
    drawing: list[tuple[Job, Participant]] = field(default_factory=list)
    drawn: list[int] = field(default_factory=list)
    scoring: list[tuple[Job, Participant]] = field(default_factory=list)
    spans: list[range] = field(default_factory=list)

    @property
    def wanted(self) -> list[int]:
        """The rows whose logits are needed: those that draw, then those that score."""
        return [*self.drawn, *(row for span in self.spans for row in span)]

    def scored(self, logits: Tensor) -> Iterator[tuple[tuple[Job, Participant], Tensor]]:
        """Each agent that scores, with its own of the ``wanted`` rows' logits."""
        first = len(self.drawn)
        for who, span in zip(self.scoring, self.spans, strict=True):
            yield who, logits[first : first + len(span)]
            first += len(span)


def rows_of(work: Work) -> Rows:
    """Take the next tokens of the agents that step."""
    rows = Rows()
    for run, agent, count in work:
        draws = agent.draws(count)
        rows.tokens += agent.take(count)
        if draws:
            rows.drawing.append((run, agent))
            rows.drawn.append(len(rows.tokens) - 1)
        elif agent.scores:
            rows.scoring.append((run, agent))
            rows.spans.append(range(len(rows.tokens) - count, len(rows.tokens)))
    return rows


def draw_rows(draw: Draw, drawing: Drawing, logits: Tensor) -> Sequence[tuple[int, float] | None]:
    """(token, log-probability) for each row; None for rows that hold NaN or no finite value."""
    if not drawing:
        return []
    runs, agents = zip(*drawing, strict=True)
    try:  # rows are checked after a failure only
        return draw(logits, runs, agents)
    except ValueError:
        valid = drawable(logits)
        if all(valid):
            raise
    kept = [row for row, fine in enumerate(valid) if fine]
    if not kept:
        return [None] * len(valid)
    drawn = iter(draw(logits[kept], [runs[row] for row in kept], [agents[row] for row in kept]))
    return [next(drawn) if fine else None for fine in valid]
