"""How a worker's return enters its organizer's context: the record of the join, and the wishes that carry it out."""

from __future__ import annotations

from collections.abc import Sequence

from asyncthink.episode.options import JoinMode
from asyncthink.episode.records import Join
from asyncthink.episode.speaker import Insert, Speaker
from asyncthink.episode.wishes import Feed, Release, Splice, Wish


def enter(speaker: Speaker, worker: Speaker, insert: Insert, mode: str) -> tuple[Join, list[Wish]]:
    """The record of a join whose tokens follow now in the speaker's trace, and its wishes.

    ``exact`` feeds all tokens. ``append`` and ``link`` feed the tokens around ``insert.span`` and splice the worker's
    K/V of the span itself; where the span is empty they feed all tokens, too.
    """
    assert worker.trace.fork_index is not None
    join = Join(worker.trace.fork_index, worker.number, len(speaker.trace.tokens), insert.length, mode)
    join.lead = len(insert.lead)
    first, last = insert.span
    if mode == JoinMode.EXACT or first == last:
        return join, [Feed(speaker.number, insert.tokens(worker.trace.tokens)), Release(worker.number)]
    join.source = insert.span
    after = [*insert.rest, *insert.closing]
    return join, [Feed(speaker.number, insert.lead), splice_of(speaker, join, worker), Feed(speaker.number, after)]


def splice_of(speaker: Speaker, join: Join, worker: Speaker) -> Splice:
    """The wish of a join that reads the worker's K/V."""
    assert join.source is not None
    start, stop = (worker.offset + token for token in join.source)
    return Splice(speaker.number, join.worker, start, stop, JoinMode(join.mode))


def spliced_joins(speaker: Speaker) -> Sequence[Join]:
    """The speaker's joins that read a worker's K/V."""
    return [join for join in speaker.trace.joins if join.source is not None]
