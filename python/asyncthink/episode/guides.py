"""Guides: which rule holds for an agent's next token, and which text is inserted for it.

What a guide says follows from the parsers and traces of the running episode. The core asks it after every change
(:meth:`Legal.due`), an engine before every draw (:meth:`Legal.rule`).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Protocol

from asyncthink.episode.modes import STRATEGIES
from asyncthink.episode.options import Guide, Options
from asyncthink.episode.params import SamplingParams
from asyncthink.episode.records import Episode, Trace
from asyncthink.episode.speaker import Insert, Speaker, Texts
from asyncthink.protocol.guide import Rule
from asyncthink.protocol.tags import VOCABULARY, Role

#: The most tokens that are kept for an answer or a return, out of a quarter of the agent's.
RESERVE = 64


class Guided(Protocol):
    """The running episode, as a guide sees it."""

    params: SamplingParams
    options: Options
    episode: Episode
    texts: Texts
    prompt: Sequence[int]
    max_length: int | None

    @property
    def speakers(self) -> Sequence[Speaker]: ...

    def may_fork(self, speaker: Speaker) -> bool:
        """Whether this agent may have workers at all."""
        ...

    def free_seats(self) -> int:
        """How many more workers may live now."""
        ...


class Legal:
    """Nothing illegal can be drawn, and an agent whose tokens run out is led to its answer or return.

    Tokens *run out* when ``max_tokens``, ``max_episode_tokens`` or the model's positions leave only the reserve: then
    an open tag is closed and the answer opened, in inserted tokens; when nothing is left, the answer is closed.

    Raises:
        ValueError: limits that leave no token for an answer.
    """

    name = Guide.LEGAL

    def __init__(self, core: Guided) -> None:
        self.core = core
        self.low = self.exhausted = False  # the tokens of the episode
        limit, episode_limit = core.params.max_tokens, core.params.max_episode_tokens
        agents = STRATEGIES[core.options.mode].beginners(core.options)
        self.reserve = max(1, min(RESERVE, limit // 4))
        self.episode_reserve = max(1, min(RESERVE, (episode_limit or 0) // (4 * agents))) * agents
        least = self.least_tokens
        for name, given, needed in (
            ("max_tokens", limit, least),
            ("max_episode_tokens", episode_limit, least * agents),
        ):
            if given is not None and given < needed:
                raise ValueError(f"{name}: expected at least {needed} under the guide {str(self.name)!r}, got {given}")
        opening = Speaker(Trace(0, STRATEGIES[core.options.mode].opening), core.texts.stream(()), len(core.prompt))
        if (room := self.room(opening)) < least:
            raise ValueError(
                f"prompt: expected at most {len(core.prompt) - least + room} tokens (the model's {core.max_length} "
                f"positions must hold an answer under the guide {str(self.name)!r}), got {len(core.prompt)}"
            )

    @property
    def least_tokens(self) -> int:
        """The smallest ``max_tokens``."""
        return 1

    # -- asked by the core --------------------------------------------------------------------------------------

    def rule(self, speaker: Speaker) -> Rule:
        """What the agent may write next."""
        parser = speaker.parser
        acting = tuple(sorted(VOCABULARY[speaker.trace.role]))
        if parser.open is not None:
            return Rule(acting, tags=(closing_tag(parser.open),))
        joins = [f"<JOIN-{index}>" for index in sorted(parser.forked - parser.joined)]
        taken = tuple(sorted(parser.forked)) if self._seat(speaker) else None
        return Rule(acting, tags=(*joins, result_tag(speaker)), taken=taken)

    def due(self, speaker: Speaker) -> str:
        """The text that is inserted for the agent before it draws again; "" for none."""
        opened = speaker.parser.open
        ends = self.left(speaker) <= 0 if opened == result_tag(speaker) else self.wraps(speaker)
        if not ends:
            return ""
        return self.completing(speaker, closing_tag(opened) if opened is not None else result_tag(speaker))

    def tick(self) -> bool:
        """A step is over; whether the tokens of the episode begin to run out, so that :meth:`due` is another one."""
        limit = self.core.params.max_episode_tokens
        if limit is None or self.exhausted:
            return False
        before = self.low
        drawing = sum(speaker.draws for speaker in self.core.speakers)
        left = limit - self.core.episode.total_tokens
        self.low = self.low or left - drawing < self.episode_reserve
        roots = sum(
            speaker.draws or speaker.waiting_for is not None for speaker in self.core.speakers if _root(speaker)
        )
        self.exhausted = self.low and left < roots
        return self.low != before or self.exhausted

    def fits(self, speaker: Speaker) -> bool:
        """Whether the model has a position for a token of the agent, behind its prompt and before its end."""
        return self.room(speaker) > 0

    def fit(self, speaker: Speaker, insert: Insert) -> Insert:
        """As much of a return as the model has positions for."""
        room = max(0, self.room(speaker) - len(insert.closing) - 1) // max(1, self._joins_to_come(speaker))
        if insert.length <= room:
            return insert
        lead = insert.lead[:room]
        first, last = insert.span
        last = min(last, first + room - len(lead))
        return Insert(lead, (first, last), insert.rest[: room - len(lead) - (last - first)], insert.closing)

    def completing(self, speaker: Speaker, tag: str) -> str:
        """``tag``; only its rest where the agent has begun it, and the model has positions for the rest's tokens.

        The rest can be more tokens than the tag: a tag that is one token is spelled out once it is begun.
        """
        rest = tag.removeprefix(speaker.parser.tail)
        return rest if self._tokens(rest) <= self._tokens(tag) + self.room(speaker) else tag

    # -- what is left ---------------------------------------------------------------------------------------------

    def wraps(self, speaker: Speaker) -> bool:
        """Whether the agent must come to its end now."""
        return self.low or self.left(speaker) <= self.reserve

    def left(self, speaker: Speaker) -> int:
        """How many tokens the agent may still draw. Workers have none when the tokens of the episode run out."""
        if self.exhausted or (self.low and not _root(speaker)):
            return 0
        return min(self.core.params.max_tokens - speaker.trace.decoded, self.room(speaker))

    def room(self, speaker: Speaker) -> int:
        """Positions of the model for tokens that the agent draws and returns that it joins."""
        if self.core.max_length is None:
            return 2**62
        return self.core.max_length - speaker.length - sum(map(self._tokens, self.to_come(speaker)))

    def to_come(self, speaker: Speaker) -> list[str]:
        """Texts that may still be inserted for the agent, returns excepted."""
        opened, result = speaker.parser.open, result_tag(speaker)
        if opened == result:
            return [closing_tag(result)]
        texts = [result, closing_tag(result)]
        if opened is not None or self.core.may_fork(speaker):
            texts += ["</FORK-999>", "</JOIN-999>"]
        return texts

    def _joins_to_come(self, speaker: Speaker) -> int:
        """Joins among which the positions are shared out, the present one included."""
        return 1

    def _seat(self, speaker: Speaker) -> bool:
        """Whether a fork that the agent begins now finds a seat: open ones of others keep theirs."""
        if not self.core.may_fork(speaker):
            return False
        others = [s for s in self.core.speakers if s is not speaker and not s.done and self.core.may_fork(s)]
        # Those before it in the order of a step may open a fork in the same one.
        kept = sum((s.parser.open or "").startswith("<FORK") or (s.draws and s.number < speaker.number) for s in others)
        return self.core.free_seats() > kept

    @functools.cached_property
    def _lengths(self) -> dict[str, int]:
        return {}

    def _tokens(self, text: str) -> int:
        if text not in self._lengths:
            self._lengths[text] = len(self.core.texts.literal(text))
        return self._lengths[text]


def _root(speaker: Speaker) -> bool:
    return speaker.trace.parent is None


def result_tag(speaker: Speaker) -> str:
    """The tag that opens the agent's result."""
    return _RESULTS[speaker.trace.role]


def closing_tag(opening: str) -> str:
    return f"</{opening[1:]}"


_RESULTS: dict[Role, str] = {"organizer": "<ANSWER>", "solo": "<ANSWER>", "worker": "<RETURN>"}
