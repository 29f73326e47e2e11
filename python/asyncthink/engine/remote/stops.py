"""Where a request may stop, because what an agent draws behind it would not be used."""

from __future__ import annotations

from asyncthink.episode.speaker import Speaker
from asyncthink.protocol.guide import Rule, Text
from asyncthink.protocol.tags import VOCABULARY

_INDICES = 8  # of workers that are named in any case


def stops(speaker: Speaker, stop: tuple[str, ...], *, pool: int, streams: bool) -> tuple[str, ...]:
    """The strings that end an agent's request: the caller's own, the end of its result, and joins.

    Behind a join the worker's return is inserted. A fork's closing tag is among them unless the engine ``streams``, as
    the worker should start then, not when the whole text has come. Indices go as far as a model that counts its workers
    can come; a tag with another one is read in any case, only later. Under a guide every tag that its rule allows
    brings another rule.
    """
    if speaker.rule is not None:
        return (*stop, *_ruled(speaker.rule))
    acting, parser = VOCABULARY[speaker.trace.role], speaker.parser
    results = [f"</{name}>" for name in ("ANSWER", "RETURN") if name in acting]
    if not parser.may_fork or "FORK" not in acting:
        return (*stop, *results)
    last = max(_INDICES, max(parser.forked, default=0) + pool)
    joins = [f"<JOIN-{index}>" for index in range(1, last + 1) if index not in parser.joined]
    forks = [] if streams else [f"</FORK-{index}>" for index in range(1, last + 1) if index not in parser.forked]
    return (*stop, *results, *joins, *forks)


def _ruled(rule: Rule) -> list[str]:
    taken = range(0) if rule.taken is None else range(1, max(rule.taken, default=0) + _INDICES + 1)
    return [*rule.tags, *(f"<FORK-{index}>" for index in taken if index not in (rule.taken or ()))]


def drawn_under(rule: Rule) -> int | None:
    """How many tokens may be drawn before the rule is another one; None: as many as come before a tag."""
    return 1 if rule.text in (Text.FIRST, Text.BEGUN) or rule.unlike else None
