"""An episode as training rows: the tokens of each agent, and the prefix that it sees of another row."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from asyncthink.episode.records import Episode, Trace
from asyncthink.train.packing import Move, Row

_SHARED_MINIMUM = 32  # shorter common prompts are computed again: looking them up in another row costs more


def rows(episode: Episode) -> list[Row]:
    """One row per trace, in their order: the agent's own tokens, with a loss only on those it drew.

    A worker with shared context sees the tokens of the agents above it up to its fork. Agents that begin a context of
    their own (isolated workers, the traces of ``parallel`` mode) and share a long prompt see it in the row of the first
    of them, so it is computed once.
    """
    episode_rows: list[Row] = []
    skipped: list[int] = []  # first tokens of each trace that lie in another row; -1: the row begins with one before
    for trace in episode.traces:
        if trace.parent is not None and episode.context == "shared":
            row = _forked_row(trace, episode.traces[trace.parent], episode.context, skipped[trace.parent])
        else:
            parent, shared = _shared_prompt(trace, episode.traces[: trace.agent], episode_rows)
            tokens, learned = trace.tokens[shared:], trace.sampled[shared:]
            row = Row(trace.role, episode.context, tuple(tokens), tuple(learned), parent, shared)
        skipped.append(len(trace.tokens) - len(row.tokens))
        episode_rows.append(row)
    for agent, trace in enumerate(episode.traces):
        moves = tuple(
            Move(
                join.at + join.lead - skipped[agent],
                join.worker,
                *(position - skipped[join.worker] for position in join.source),
            )
            for join in trace.joins
            if join.source is not None
        )
        episode_rows[agent] = dataclasses.replace(episode_rows[agent], moves=moves)
    return episode_rows


def _forked_row(trace: Trace, parent: Trace, context: str, skipped: int) -> Row:
    """The row of a worker that sees its parent's tokens up to the fork, without the first ``skipped`` of these."""
    tokens, learned, fork_at = list(trace.tokens), list(trace.sampled), trace.fork_at
    if learned[:1] != [False]:  # without a prompt of its own, the parent's last token predicts the first drawn one
        fork_at -= 1
        tokens, learned = [parent.tokens[fork_at], *tokens], [False, *learned]
    return Row(trace.role, context, tuple(tokens), tuple(learned), parent.agent, fork_at - skipped)


def _shared_prompt(trace: Trace, others: Sequence[Trace], other_rows: Sequence[Row]) -> tuple[int | None, int]:
    """(earlier agent, number of its first tokens) that this agent sees instead of its own; (None, 0) if too few."""
    for other, row in zip(others, other_rows, strict=True):
        given = min(_given(trace), _given(other))
        same = next((k for k in range(given) if trace.tokens[k] != other.tokens[k]), given)
        if row.parent is None and same > _SHARED_MINIMUM:
            return other.agent, same - 1  # one token stays: it predicts the first drawn one
    return None, 0


def _given(trace: Trace) -> int:
    """Number of tokens before the first one that the agent drew."""
    return trace.sampled.index(True) if True in trace.sampled else len(trace.tokens)
