"""The contexts of a running episode rebuilt, for an engine that had to release them."""

from __future__ import annotations

from collections.abc import Sequence

from asyncthink.episode.core import EpisodeCore
from asyncthink.episode.joins import splice_of, spliced_joins
from asyncthink.episode.options import JoinMode
from asyncthink.episode.speaker import Speaker
from asyncthink.episode.wishes import Begin, Feed, Fork, Wish
from asyncthink.protocol.prompts import worker_template


def contexts(core: EpisodeCore) -> list[Wish]:
    """Wishes that rebuild the current contexts of all agents that need one."""
    wishes: list[Wish] = []
    needed = _needed(core)
    first_root: Speaker | None = None  # the first agent without a parent; later ones fork from its prompt
    for speaker in core.speakers:
        if speaker.number not in needed:
            continue
        if speaker.trace.parent is not None and speaker.offset:
            known = 0
            wishes.append(Fork(speaker.number, speaker.trace.parent, speaker.offset))
        elif speaker.trace.parent is None and first_root is not None:
            known = speaker.prompt_tokens - 1
            wishes.append(Fork(speaker.number, first_root.number, known))
        else:
            first_root = first_root or (speaker if speaker.trace.parent is None else None)
            known = speaker.prompt_tokens
            worker = worker_template("isolated", speaker.parser.may_fork)
            name = worker if speaker.trace.role == "worker" else speaker.trace.role
            wishes.append(Begin(speaker.number, speaker.trace.tokens[:known], name))
        wishes += _rest(speaker, known, core.speakers)
    return wishes


def _needed(core: EpisodeCore) -> set[int]:
    """The agents that need their contexts: those that run, and done workers whose K/V a join has read, or will read.

    A done worker's context may itself hold K/V of its own workers, and so on down the tree.
    """
    needed = {speaker.number for speaker in core.speakers if not speaker.done}
    if core.options.join != JoinMode.EXACT:
        joined = {join.worker for speaker in core.speakers for join in speaker.trace.joins}
        unread = [worker for worker in core.workers.values() if worker.number not in joined and worker.trace.returned]
        needed |= {worker.number for worker in unread if worker.trace.parent in needed}
    new = needed
    while new:
        new = {join.worker for number in new for join in spliced_joins(core.speakers[number])} - needed
        needed |= new
    return needed


def _rest(speaker: Speaker, first: int, speakers: Sequence[Speaker]) -> list[Wish]:
    """The agent's own tokens from number ``first`` on, with the joins among them."""
    tokens, wishes = speaker.trace.tokens, list[Wish]()
    for join in spliced_joins(speaker):
        splice = splice_of(speaker, join, speakers[join.worker])
        wishes += [Feed(speaker.number, tokens[first : join.at + join.lead]), splice]
        first = join.at + join.lead + splice.stop - splice.start
    return [*wishes, Feed(speaker.number, tokens[first:])]
