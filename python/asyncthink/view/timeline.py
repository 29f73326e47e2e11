"""The layout of an episode in time: lanes, segments, links between lanes. Plain data, drawn by :mod:`.html`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby, pairwise

from asyncthink.episode import tree
from asyncthink.episode.critical_path import critical_path
from asyncthink.episode.options import Mode
from asyncthink.episode.records import Episode, Trace
from asyncthink.protocol.parser import Parser
from asyncthink.protocol.tags import Answer, Fork, FormatError, Join, Return


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive tokens of one kind, drawn or inserted during the steps ``[begin, end)``.

    ``kind`` is "prompt", "think", "fork", "join" (the tag), "joined" (the inserted return), "tool" (the inserted result
    of a tool), "answer", "return", or "wait" (no tokens). ``index`` is the i of FORK-i, ``peer`` that worker's number,
    None if it was not forked. ``forced`` of the tokens were inserted by the episode's guide.
    """

    kind: str
    begin: int
    end: int
    text: str = ""
    tokens: int = 0
    index: int | None = None
    peer: int | None = None
    forced: int = 0


@dataclass(slots=True)
class Lane:
    """One agent, ``level`` forks below the one that began the episode.

    ``critical`` holds the intervals of steps in which it drew tokens of the critical path.
    """

    agent: int
    title: str
    level: int = 0
    subquery: str = ""
    finish: str = ""
    segments: list[Segment] = field(default_factory=list)
    critical: list[tuple[int, int]] = field(default_factory=list)

    @property
    def drawn(self) -> int:
        inserted = ("prompt", "joined", "tool", "wait")
        return sum(s.tokens - s.forced for s in self.segments if s.kind not in inserted)


@dataclass(frozen=True, slots=True)
class Link:
    """A fork (from the parent to the worker at ``step``), or a join (from the worker, done at ``ready``, back)."""

    kind: str
    parent: int
    worker: int
    index: int
    step: int
    ready: int
    critical: bool


@dataclass(slots=True)
class Timeline:
    """``lanes`` stand in the order of the tree: each agent's workers right below it, in the order of its forks."""

    lanes: list[Lane]
    links: list[Link]
    first: int
    last: int
    step_times: list[float]

    def seconds(self, step: int) -> float | None:
        """Seconds from admission to the beginning of a step; None if the episode has no step times."""
        if step <= 0:
            return 0.0
        return self.step_times[min(step, len(self.step_times)) - 1] if self.step_times else None


def timeline(episode: Episode) -> Timeline:
    """Lay out an episode.

    Raises ValueError if a trace lacks the text or the step of a token.
    """
    for trace in episode.traces:
        if not len(trace.tokens) == len(trace.sampled) == len(trace.steps) == len(trace.pieces):
            sizes = [len(column) for column in (trace.tokens, trace.sampled, trace.steps, trace.pieces)]
            raise ValueError(f"agent {trace.agent}: expected as many sampled, steps, pieces as tokens, got {sizes}")
    lanes = {agent: _lane(episode, episode.traces[agent]) for agent in tree.depth_first(episode.traces)}
    path = critical_path(episode.traces) if episode.mode != Mode.PARALLEL else []
    for agent, first, last in path:
        steps = [s for s, drawn in _slice(episode.traces[agent], first, last) if drawn]
        if steps:
            lanes[agent].critical.append((steps[0], steps[-1] + 1))
    hops = {(a.agent, b.agent) for a, b in pairwise(path)}
    links = [link for agent in range(len(lanes)) for link in _links(episode, lanes[agent], hops)]
    steps = [s for trace in episode.traces for s in trace.steps] or [0]
    return Timeline(list(lanes.values()), links, min(steps), max(steps) + 1, episode.step_times)


def _slice(trace: Trace, first: int, last: int) -> Iterator[tuple[int, bool]]:
    return zip(trace.steps[first:last], trace.sampled[first:last], strict=True)


def _lane(episode: Episode, trace: Trace) -> Lane:
    level = len(tree.lineage(episode.traces, trace.agent)) - 1
    lane = Lane(trace.agent, _title(episode, trace), level, finish=trace.finish)
    workers = {other.fork_index: other.agent for other in episode.traces if other.parent == trace.agent}
    for event in episode.events:
        if event.kind == "fork" and event.peer == trace.agent:
            lane.subquery = event.text
    labels = _labels(trace, may_fork=level < episode.depth)
    start = 0
    for (kind, index), group in groupby(labels):
        stop = start + len(list(group))
        begin, end = trace.steps[start], trace.steps[stop - 1] + 1
        if lane.segments and begin > lane.segments[-1].end:
            lane.segments.append(Segment("wait", lane.segments[-1].end, begin))
        text, peer = "".join(trace.pieces[start:stop]), workers.get(index)
        forced = sum(start <= token < stop for token in trace.forced)
        lane.segments.append(Segment(kind, begin, end, text, stop - start, index, peer, forced))
        start = stop
    return lane


def _title(episode: Episode, trace: Trace) -> str:
    alone = trace.role == "solo" and len(episode.traces) == 1
    return "one agent" if alone else tree.name(episode.traces, trace.agent)


def _labels(trace: Trace, may_fork: bool) -> list[tuple[str, int | None]]:
    """(kind, index) of every token, from the tags that the agent drew itself, or a guide for it."""
    parser = Parser(trace.role, may_fork)
    told = {k for use in trace.tools for k in range(use.at, use.at + use.length)}
    joining: int | None = None
    labels: list[tuple[str, int | None]] = []
    ends: list[int] = []
    size, forced = 0, set(trace.forced)
    for number, (piece, drawn) in enumerate(zip(trace.pieces, trace.sampled, strict=True)):
        size += len(piece)
        ends.append(size)
        if not drawn and number not in forced:
            parser.insert(piece)
            inserted = ("joined", joining) if joining else ("prompt", None)
            labels.append(("tool", None) if number in told else inserted)
            continue
        labels.append(("think", None))
        for action in parser.feed(piece):
            if not isinstance(action, FormatError):
                _mark(labels, ends, action)
                joining = action.index if isinstance(action, Join) else joining
    return labels


def _mark(labels: list[tuple[str, int | None]], ends: list[int], action: Fork | Join | Answer | Return) -> None:
    kind = type(action).__name__.lower()
    index = action.index if isinstance(action, Fork | Join) else None
    for k in range(len(ends) - 1, -1, -1):
        if ends[k] <= action.span.start:
            break
        labels[k] = (kind, index)


def _links(episode: Episode, lane: Lane, hops: set[tuple[int, int]]) -> Iterator[Link]:
    trace = episode.traces[lane.agent]
    if trace.parent is not None and trace.steps:
        parent = episode.traces[trace.parent]
        step = parent.steps[trace.fork_at - 1] + 1 if trace.fork_at else trace.steps[0]
        yield Link(
            "fork", trace.parent, trace.agent, trace.fork_index or 0, step, step, (trace.parent, trace.agent) in hops
        )
    for join in trace.joins:
        worker = episode.traces[join.worker]
        ready = worker.steps[-1] + 1 if worker.steps else 0
        step = trace.steps[join.at] if join.at < len(trace.steps) else trace.steps[-1] + 1
        critical = (join.worker, trace.agent) in hops
        yield Link("join", trace.agent, join.worker, join.index, max(step, ready), ready, critical)
