"""The tree of an episode's agents: who forked whom, what an agent is called, and in which order lanes stand."""

from __future__ import annotations

from collections.abc import Sequence

from asyncthink.episode.records import Trace


def lineage(traces: Sequence[Trace], agent: int) -> tuple[int, ...]:
    """The agents from the one that began the episode down to ``agent``. Its length less one is the agent's level."""
    parent = traces[agent].parent
    return (agent,) if parent is None else (*lineage(traces, parent), agent)


def path(traces: Sequence[Trace], agent: int) -> tuple[int, ...]:
    """The i of the ``<FORK-i>`` from the organizer down to ``agent``; () for an agent that began the episode."""
    return tuple(index for k in lineage(traces, agent) if (index := traces[k].fork_index) is not None)


def worker_name(indices: Sequence[int]) -> str:
    """The name of the worker with this :func:`path`.

    >>> worker_name([2]), worker_name([2, 1])
    ('worker 2', 'worker 2.1')
    """
    return f"worker {'.'.join(map(str, indices))}"


def name(traces: Sequence[Trace], agent: int) -> str:
    """What an agent is called: "organizer", "worker 2.1" (worker 1 of worker 2), "agent 3" of several alone.

    >>> traces = [Trace(0, "organizer"), Trace(1, "worker", 0, 2), Trace(2, "worker", 1, 1)]
    >>> [name(traces, agent) for agent in range(3)]
    ['organizer', 'worker 2', 'worker 2.1']
    """
    role = traces[agent].role
    if role == "worker":
        return worker_name(path(traces, agent))
    return role if role == "organizer" else f"agent {agent + 1}"


def depth_first(traces: Sequence[Trace]) -> list[int]:
    """The agents, each one behind its parent and in front of its parent's next worker.

    >>> traces = [Trace(0, "organizer"), Trace(1, "worker", 0, 1), Trace(2, "worker", 0, 2), Trace(3, "worker", 1, 1)]
    >>> depth_first(traces)
    [0, 1, 3, 2]
    """
    return sorted(range(len(traces)), key=lambda agent: lineage(traces, agent))
