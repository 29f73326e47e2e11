"""The contexts of a running episode made anew, for an engine that had to give them up."""

from __future__ import annotations

from collections.abc import Sequence

from asyncthink.episode.core import EpisodeCore
from asyncthink.episode.speaker import Speaker, splice_of, spliced_joins
from asyncthink.episode.wishes import Begin, Feed, Fork, Wish


def contexts(core: EpisodeCore) -> list[Wish]:
    """Wishes that make the contexts of all agents that need one, as they stand now.

    Those are the agents that are not done, and the workers whose K/V a join of theirs reads, or will read.
    """
    joined = {join.worker for speaker in core.speakers for join in speaker.trace.joins}
    read = {join.worker for speaker in core.speakers if not speaker.done for join in spliced_joins(speaker)}
    if core.options.join != "exact":
        read |= {worker.number for worker in core.workers.values() if worker.trace.returned} - joined
    wishes: list[Wish] = []
    first_alone: Speaker | None = None
    for speaker in core.speakers:
        if speaker.done and speaker.number not in read:
            continue
        if speaker.trace.parent is not None and speaker.offset:
            known = 0
            wishes.append(Fork(speaker.number, speaker.trace.parent, speaker.offset))
        elif speaker.trace.parent is None and first_alone is not None:
            known = speaker.prompt_tokens - 1
            wishes.append(Fork(speaker.number, first_alone.number, known))
        else:
            first_alone = first_alone or (speaker if speaker.trace.parent is None else None)
            known = speaker.prompt_tokens
            name = "worker_isolated" if speaker.trace.role == "worker" else speaker.trace.role
            wishes.append(Begin(speaker.number, speaker.trace.tokens[:known], name))
        wishes += _rest(speaker, known, core.speakers)
    return wishes


def _rest(speaker: Speaker, first: int, speakers: Sequence[Speaker]) -> list[Wish]:
    """The agent's own tokens from number ``first`` on, with the joins among them."""
    tokens, wishes = speaker.trace.tokens, list[Wish]()
    for join in spliced_joins(speaker):
        entering = splice_of(speaker, join, speakers)
        wishes += [Feed(speaker.number, tokens[first : join.at + join.lead]), entering]
        first = join.at + join.lead + entering.stop - entering.start
    return [*wishes, Feed(speaker.number, tokens[first:])]
