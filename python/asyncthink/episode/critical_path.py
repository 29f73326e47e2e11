"""The critical path: the longest chain of drawn tokens through forks and joins, in one pass over the traces."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple, Protocol


class Entry(Protocol):
    """What the path needs of a join."""

    at: int
    worker: int


class Spoken(Protocol):
    """What the path needs of a trace (:class:`asyncthink.episode.records.Trace`)."""

    agent: int
    parent: int | None
    fork_at: int
    tokens: list[int]
    sampled: list[bool]

    @property
    def joins(self) -> Sequence[Entry]: ...


class Stretch(NamedTuple):
    """Own tokens ``[first, last)`` of an agent that lie on the critical path."""

    agent: int
    first: int
    last: int


def critical_path(traces: Sequence[Spoken]) -> list[Stretch]:
    """Stretches of the critical path in the order they were written. The last one ends with agent 0's last token.

    A worker starts at its parent's clock after the parent's first ``fork_at`` tokens, and a join waits for the later
    of the two: ``clock[p] = max(clock[p], end of the worker)``. A drawn token takes 1, an inserted one 0. On a tie
    the path stays with the agent that joins. (AsyncThink, arXiv 2510.26658, section 2.3.)
    """
    if not traces:
        return []
    children: dict[tuple[int, int], list[int]] = defaultdict(list)
    for trace in traces:
        if trace.parent is not None:
            children[trace.parent, trace.fork_at].append(trace.agent)
    ends: dict[int, int] = {}
    detours: dict[int, dict[int, int]] = {}  # agent -> {position: the worker that was waited for}

    def walk(agent: int, clock: int) -> None:
        trace = traces[agent]
        detours[agent] = {}
        waits = {join.at: join.worker for join in trace.joins}
        for position in range(len(trace.tokens) + 1):
            for child in children[agent, position]:
                walk(child, clock)
            if position == len(trace.tokens):
                break
            if position in waits and ends.get(waits[position], 0) > clock:
                clock = ends[waits[position]]
                detours[agent][position] = waits[position]
            clock += trace.sampled[position]
        ends[agent] = clock

    walk(0, 0)
    return _backwards(traces, detours)


def _backwards(traces: Sequence[Spoken], detours: dict[int, dict[int, int]]) -> list[Stretch]:
    """Follow the path from agent 0's last token to the beginning."""
    path: list[Stretch] = []
    agent, last = 0, len(traces[0].tokens)
    while True:
        trace = traces[agent]
        waited = max((position for position in detours[agent] if position < last), default=None)
        path.append(Stretch(agent, waited or 0, last))
        if waited is not None:
            agent = detours[agent][waited]
            last = len(traces[agent].tokens)
        elif trace.parent is not None:
            agent, last = trace.parent, trace.fork_at
        else:
            return [stretch for stretch in reversed(path) if stretch.first < stretch.last]
