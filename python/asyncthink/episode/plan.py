"""The guide "plan": the organizer forks, thinks, joins all and answers, whether it was trained to or not."""

from __future__ import annotations

from asyncthink.episode.guides import Guided, Legal, closing_tag, result_tag
from asyncthink.episode.modes import STRATEGIES
from asyncthink.episode.options import Guide
from asyncthink.episode.speaker import Speaker
from asyncthink.protocol.guide import Rule, Text
from asyncthink.protocol.tags import VOCABULARY

#: The most tokens of a planned sub-query, and of the organizer's thinking behind its planned forks.
SUBQUERY, THINKING = 40, 64


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
        if opened is not None and opened != result_tag(speaker):
            return self._line(speaker, acting, opened)
        if opened is not None:
            if not parser.inner.strip():
                return Rule(acting, text=Text.FIRST)
            return Rule(acting, tags=(closing_tag(opened),), text=Text.PLAIN, ends=True)
        number = len(parser.forked)
        more = number < self.most and not parser.joined and self._seat(speaker)
        return Rule(acting, tags=(f"<FORK-{number + 1}>",) if more else (), text=Text.LINE)

    def due(self, speaker: Speaker) -> str:
        parser, result = speaker.parser, result_tag(speaker)
        opened = parser.open
        if opened == result:
            return self.completing(speaker, closing_tag(result)) if self.left(speaker) <= 0 else ""
        if speaker.trace.role != "organizer":
            return result
        drawn = self._drawn(speaker)
        if opened is not None:
            ended = parser.inner.strip() and parser.inner.endswith("\n")
            if not (ended or drawn >= self.subquery or self.wraps(speaker)):
                return ""
            return self.completing(speaker, closing_tag(opened))
        number = len(parser.forked)
        break_ = "\n" if number else ""
        if number < self.least and not self.wraps(speaker):
            return f"{break_}<FORK-{number + 1}>"
        thinks = parser.tail or (drawn < self.thinking and not self._line_ended(speaker))  # or is within a tag
        if thinks and not parser.joined and not self.wraps(speaker):
            return ""
        open_joins = sorted(parser.forked - parser.joined)
        return f"\n<JOIN-{open_joins[0]}>" if open_joins else f"{break_}{result}"

    def to_come(self, speaker: Speaker) -> list[str]:
        result, parser = result_tag(speaker), speaker.parser
        if parser.open == result or speaker.trace.role != "organizer":
            return [closing_tag(result)] if parser.open == result else [result, closing_tag(result)]
        texts = [f"\n{result}", closing_tag(result)]
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
        return Rule(acting, tags=(closing_tag(opened),), text=Text.LINE, unlike=unlike)

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
