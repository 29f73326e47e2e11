"""The rules that a reply must keep to become a trace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from asyncthink.protocol.tags import Fork, Return
from asyncthink.train.synthesize.actions import actions_of, follows
from asyncthink.train.synthesize.asking import Asked, Asking
from asyncthink.train.synthesize.questions import Question
from asyncthink.train.traces import WrittenTrace

#: The names of the rules, in the order in which they are checked.
CUT, SECTIONS, PROTOCOL, EMPTY, ACTIONS, ANSWER = "cut", "sections", "protocol", "empty", "actions", "answer"


class RejectedError(Exception):
    """A reply that breaks a rule: ``reason`` is the name of the rule."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server answered: text, why it ended, further fields; tokens read and written where it told them."""

    text: str
    finish: str | None = "stop"
    extra: dict[str, Any] | None = None
    usage: dict[str, int] | None = None


def check(
    reply: Reply, asked: Asked, asking: Asking, question: Question, least_score: float, **fields: Any
) -> WrittenTrace:
    """The trace in a reply; ``fields`` are further ones of :class:`.traces.WrittenTrace`.

    Raises :class:`RejectedError` by the first rule that is broken:

    - ``cut``: the reply ended at a limit of tokens;
    - ``sections``: agents are not found in it;
    - ``protocol``: the agents break the protocol;
    - ``empty``: a sub-query, a return or the answer is blank;
    - ``actions``: the organizer does other things than it was asked for;
    - ``answer``: the answer is graded below ``least_score``.
    """
    if reply.finish == "length":
        raise RejectedError(CUT, f"{(reply.usage or {}).get('completion_tokens', 'unknown')} tokens")
    try:
        agents = asking.read(reply.text, reply.extra or {})
    except ValueError as error:
        raise RejectedError(SECTIONS, str(error)) from None
    try:
        trace = WrittenTrace(question.text, agents, **fields)
    except ValueError as error:
        raise RejectedError(PROTOCOL, str(error)) from None
    for number, acts in enumerate(trace.acts()):
        for act in acts:
            if isinstance(act, Fork) and not act.subquery.strip():
                raise RejectedError(EMPTY, f"the sub-query of <FORK-{act.index}>")
            if isinstance(act, Return) and not act.text.strip():
                raise RejectedError(EMPTY, f"the return of agent {number}")
    if not trace.answer.strip():
        raise RejectedError(EMPTY, "the answer")
    written = actions_of(trace)
    if asked.actions is not None and not follows(written, asked.actions):
        raise RejectedError(ACTIONS, f"expected {' '.join(asked.actions)}, got {' '.join(written)}")
    if question.grade is None:
        return trace
    score = question.grade(trace.answer)
    if score < least_score:
        raise RejectedError(ANSWER, f"expected a score of at least {least_score}, got {score} for {trace.answer!r:.80}")
    return WrittenTrace(question.text, agents, score=score, **fields)
