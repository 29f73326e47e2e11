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
from asyncthink.protocol.guide import Rule, Text
from asyncthink.protocol.tags import VOCABULARY, Role

#: The most tokens that are kept for an answer or a return, out of a quarter of the agent's.
RESERVE = 64
#: The most tokens of a planned sub-query, and of the organizer's thinking behind its planned forks.
SUBQUERY, THINKING = 40, 64
_LONG = len("</FORK-999>")  # the most tokens of a tag


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
            return Rule(acting, tags=(_closing(parser.open),))
        joins = [f"<JOIN-{index}>" for index in sorted(parser.forked - parser.joined)]
        taken = tuple(sorted(parser.forked)) if self._seat(speaker) else None
        return Rule(acting, tags=(*joins, _opening(speaker)), taken=taken)

    def due(self, speaker: Speaker) -> str:
        """The text that is inserted for the agent before it draws again; "" for none."""
        opened = speaker.parser.open
        if opened == _opening(speaker):
            return _closing(opened) if self.left(speaker) <= 0 else ""
        if not self.wraps(speaker):
            return ""
        return _closing(opened) if opened is not None else _opening(speaker)

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
        opened, result = speaker.parser.open, _opening(speaker)
        if opened == result:
            return [_closing(result)]
        texts = [result, _closing(result)]
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


class Plan(Legal):
    """The organizer forks, thinks, joins all and answers; a worker returns. For models that were not trained to.

    Tags are inserted; what stands between them is drawn: text without anything like a tag. A sub-query is a line, and
    differs from the earlier ones by its last word at the latest. End-of-text closes an answer or a return.
    """

    name = Guide.PLAN

    def __init__(self, core: Guided) -> None:
        organized = STRATEGIES[core.options.mode].opening == "organizer"
        seats = core.options.pool - 1 if organized else 0
        self.most = seats if core.options.forks is None else core.options.forks
        self.least = min(2, seats) if core.options.forks is None else core.options.forks
        super().__init__(core)
        limit = core.params.max_tokens
        self.subquery = max(1, min(SUBQUERY, limit // (2 * max(1, self.most))))
        self.thinking = max(0, min(THINKING, limit // 8, limit - self.least * self.subquery - 1))
        self.reserve = max(1, min(self.reserve, limit - self.least * self.subquery))
        self._begun: dict[int, tuple[tuple[object, ...], int]] = {}  # agent -> (state of its tags, tokens before it)

    @property
    def least_tokens(self) -> int:
        return self.least + 1

    def rule(self, speaker: Speaker) -> Rule:
        parser = speaker.parser
        acting = tuple(sorted(VOCABULARY[speaker.trace.role]))
        opened = parser.open
        if opened is not None and opened != _opening(speaker):
            return self._line(speaker, acting, opened)
        if opened is not None:
            if not parser.inner.strip():
                return Rule(acting, text=Text.FIRST)
            return Rule(acting, tags=(_closing(opened),), text=Text.PLAIN, ends=True)
        number = len(parser.forked)
        more = number < self.most and not parser.joined and self._seat(speaker)
        return Rule(acting, tags=(f"<FORK-{number + 1}>",) if more else (), text=Text.LINE)

    def due(self, speaker: Speaker) -> str:
        parser, result = speaker.parser, _opening(speaker)
        opened = parser.open
        if opened == result:
            return _closing(result) if self.left(speaker) <= 0 else ""
        if speaker.trace.role != "organizer":
            return result
        drawn = self._drawn(speaker)
        if opened is not None:
            ended = parser.inner.strip() and parser.inner.endswith("\n")
            if not (ended or drawn >= self.subquery or self.wraps(speaker)):
                return ""
            closing, begun = _closing(opened), parser.tail
            # A begun closing tag is completed, where the positions do not count.
            return closing[len(begun) :] if closing.startswith(begun) and self.left(speaker) > _LONG else closing
        number = len(parser.forked)
        break_ = "\n" if number else ""
        if number < self.least and not self.wraps(speaker):
            return f"{break_}<FORK-{number + 1}>"
        thought = parser.joined or drawn >= self.thinking or self._line_ended(speaker) or self.wraps(speaker)
        if not thought:
            return ""
        open_joins = sorted(parser.forked - parser.joined)
        return f"\n<JOIN-{open_joins[0]}>" if open_joins else f"{break_}{result}"

    def to_come(self, speaker: Speaker) -> list[str]:
        result, parser = _opening(speaker), speaker.parser
        if parser.open == result or speaker.trace.role != "organizer":
            return [_closing(result)] if parser.open == result else [result, _closing(result)]
        texts = [f"\n{result}", _closing(result)]
        for index in range(1, self.most + 1):
            if index not in parser.forked:
                texts += [f"\n<FORK-{index}>", f"</FORK-{index}>"]
            if index not in parser.joined:
                texts += [f"\n<JOIN-{index}>", f"</JOIN-{index}>"]
        return texts

    def _joins_to_come(self, speaker: Speaker) -> int:
        return len(speaker.parser.forked - speaker.parser.joined) + 1

    def _line(self, speaker: Speaker, acting: tuple[str, ...], opened: str) -> Rule:
        """The rule inside of a sub-query."""
        inner = speaker.parser.inner
        rests = {
            earlier[len(inner) :]
            for earlier in self._subqueries(speaker)
            if earlier.startswith(inner) and len(inner) >= earlier.rfind(" ")
        }
        unlike = tuple(sorted(rests - {""}))
        if not inner.strip():
            return Rule(acting, text=Text.FIRST, unlike=unlike)
        if "" in rests:
            return Rule(acting, text=Text.BEGUN)
        return Rule(acting, tags=(_closing(opened),), text=Text.LINE, unlike=unlike)

    def _subqueries(self, speaker: Speaker) -> list[str]:
        """The earlier sub-queries of an agent."""
        return [
            event.text.rstrip()
            for event in self.core.episode.events
            if event.kind == "fork" and event.agent == speaker.number
        ]

    def _line_ended(self, speaker: Speaker) -> bool:
        """Whether the thinking behind the forks has come to the end of a line."""
        text = speaker.parser.text.rpartition(">")[2]
        return bool(text.strip()) and text.endswith("\n")

    def _drawn(self, speaker: Speaker) -> int:
        """Tokens that the agent has drawn since its last tag acted."""
        parser, tokens = speaker.parser, len(speaker.trace.tokens)
        state = (parser.open, len(parser.forked), len(parser.joined))
        before = self._begun.get(speaker.number)
        if before is None or before[0] != state:
            before = self._begun[speaker.number] = (state, tokens)
        return sum(speaker.trace.sampled[before[1] :])


GUIDES: dict[str, type[Legal]] = {Guide.LEGAL: Legal, Guide.PLAN: Plan}


def _root(speaker: Speaker) -> bool:
    return speaker.trace.parent is None


def _opening(speaker: Speaker) -> str:
    """The tag that opens the agent's result."""
    return _RESULTS[speaker.trace.role]


def _closing(opening: str) -> str:
    return f"</{opening[1:]}"


_RESULTS: dict[Role, str] = {"organizer": "<ANSWER>", "solo": "<ANSWER>", "worker": "<RETURN>"}
