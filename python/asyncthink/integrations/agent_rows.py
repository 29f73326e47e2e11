"""An episode as one linear row an agent: prompt, response, mask, log-probabilities. Plain lists, for any trainer."""

from __future__ import annotations

from dataclasses import dataclass

from asyncthink.episode.options import Context, JoinMode
from asyncthink.episode.records import Episode, Trace


@dataclass(frozen=True, slots=True)
class AgentRow:
    """What one agent read and drew.

    ``prompt`` [P] is its context up to the first token that it drew; that of a worker with shared context begins with
    the tokens of the agents above it. ``response`` [R] goes on from there to the last token that it drew. ``mask`` [R]
    is 1 where the agent drew the token, and 0 where the runtime inserted it (a worker's return). ``logprobs`` [R] are
    natural-log probabilities of the distribution drawn from, 0.0 for inserted tokens.
    """

    agent: int
    role: str
    prompt: list[int]
    response: list[int]
    mask: list[int]
    logprobs: list[float]


def agent_rows(episode: Episode) -> list[AgentRow]:
    """One row for each agent that drew a token: workers in the order of their forks, the organizer last.

    All rows are contexts as the model saw them, because an exact join is tokens in the organizer's context. Raises
    ValueError for the join modes "append" and "link", whose K/V are not those of any linear row.

    >>> organizer = Trace(0, "organizer", tokens=[1, 2, 3, 9, 4], sampled=[False, True, True, False, True])
    >>> worker = Trace(1, "worker", 0, 1, fork_at=3, tokens=[7, 8], sampled=[False, True])
    >>> for trace in (organizer, worker):
    ...     trace.logprobs = [-0.5 * drawn for drawn in trace.sampled]
    >>> rows = agent_rows(Episode("q", "asyncthink", traces=[organizer, worker]))
    >>> [(row.role, row.prompt, row.response, row.mask) for row in rows]
    [('worker', [1, 2, 3, 7], [8], [1]), ('organizer', [1], [2, 3, 9, 4], [1, 1, 0, 1])]
    """
    if episode.join_mode != JoinMode.EXACT:
        raise ValueError(f"join: expected 'exact' for rows of tokens, got {str(episode.join_mode)!r}")
    rows = [_row(episode, trace) for trace in episode.traces if trace.decoded]
    return [row for row in rows if row.agent] + [row for row in rows if not row.agent]


def _row(episode: Episode, trace: Trace) -> AgentRow:
    first = trace.sampled.index(True)
    last = len(trace.sampled) - trace.sampled[::-1].index(True)
    return AgentRow(
        trace.agent,
        trace.role,
        [*_above(episode, trace), *trace.tokens[:first]],
        trace.tokens[first:last],
        [int(drawn) for drawn in trace.sampled[first:last]],
        trace.logprobs[first:last],
    )


def _above(episode: Episode, trace: Trace) -> list[int]:
    """The tokens of the agents above that stand in front of a worker's own."""
    if trace.parent is None or episode.context == Context.ISOLATED:
        return []
    parent = episode.traces[trace.parent]
    return [*_above(episode, parent), *parent.tokens[: trace.fork_at]]
