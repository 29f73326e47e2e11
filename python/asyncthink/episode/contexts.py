"""The contexts of a running episode rebuilt, for an engine that had to release them."""

from __future__ import annotations

from collections.abc import Sequence

from asyncthink.episode.core import EpisodeCore
from asyncthink.episode.joins import splice_of, spliced_joins
from asyncthink.episode.options import JoinMode
from asyncthink.episode.speaker import Speaker
from asyncthink.episode.wishes import Begin, Feed, Fork, Wish


def contexts(core: EpisodeCore) -> list[Wish]:
    """Wishes that rebuild the current contexts of all agents that need one.

    An agent needs its context until it is done; a done worker while a join has read its K/V, or will read it.
    """
    joined = {join.worker for speaker in core.speakers for join in speaker.trace.joins}
    read = {join.worker for speaker in core.speakers if not speaker.done for join in spliced_joins(speaker)}
    if core.options.join != JoinMode.EXACT:
        read |= {worker.number for worker in core.workers.values() if worker.trace.returned} - joined
    wishes: list[Wish] = []
    first_root: Speaker | None = None  # the first agent without a parent; later ones fork from its prompt
    for speaker in core.speakers:
        if speaker.done and speaker.number not in read:
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
            name = "worker_isolated" if speaker.trace.role == "worker" else speaker.trace.role
            wishes.append(Begin(speaker.number, speaker.trace.tokens[:known], name))
        wishes += _rest(speaker, known, core.speakers)
    return wishes


def _rest(speaker: Speaker, first: int, speakers: Sequence[Speaker]) -> list[Wish]:
    """The agent's own tokens from number ``first`` on, with the joins among them."""
    tokens, wishes = speaker.trace.tokens, list[Wish]()
    for join in spliced_joins(speaker):
        splice = splice_of(speaker, join, speakers[join.worker])
        wishes += [Feed(speaker.number, tokens[first : join.at + join.lead]), splice]
        first = join.at + join.lead + splice.stop - splice.start
    return [*wishes, Feed(speaker.number, tokens[first:])]
