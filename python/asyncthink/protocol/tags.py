"""The tags in which agents speak: grammar, incremental parser, prompt templates. No torch, no tokenizer.

========================================= ======================================== ==================
text                                      what happens                             who may write it
========================================= ======================================== ==================
``<FORK-i>sub-query</FORK-i>``            worker i starts on the sub-query         organizer
``<JOIN-i>``                              the runtime inserts worker i's return    organizer
                                          and ``</JOIN-i>``
``<ANSWER>text</ANSWER>``                 the episode ends                         organizer, solo
``<RETURN>text</RETURN>``                 the worker ends                          worker
========================================= ======================================== ==================

i is 1 to 999 without leading zeros, names are upper case, a tag holds no spaces: ``<FORK-0>``, ``<FORK-01>``,
``<fork-1>``, ``<JOIN - 1>`` and ``<b>`` are text. A tag of another role is text too (``<RETURN>`` from an organizer,
``<FORK-1>`` from a solo agent), with one exception: a worker cannot fork or join, so there FORK and JOIN tags are
the format error :data:`NESTED_TAG`. Source: AsyncThink, arXiv 2510.26658, section 2.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from asyncthink.protocol.prompts import DEFAULT_PROMPTS, PromptFormat

__all__ = [
    "DEFAULT_PROMPTS",
    "FORMAT_ERRORS",
    "Action",
    "Answer",
    "Fork",
    "FormatError",
    "Join",
    "Parser",
    "PromptFormat",
    "Return",
    "Role",
    "is_tag",
    "join_insert",
    "render",
]

Role = Literal["organizer", "worker", "solo"]

DUPLICATE_FORK = "duplicate fork index"
POOL_OVERFLOW = "pool overflow"
UNKNOWN_JOIN = "join of an index never forked"
REPEATED_JOIN = "join of an index already joined"
NESTED_TAG = "nested tag"
UNCLOSED_TAG = "unclosed tag"
MISMATCHED_CLOSE = "mismatched closing tag"
NO_ANSWER = "no answer"
NO_RETURN = "worker without RETURN"
BUDGET_EXCEEDED = "budget exceeded"
#: Every reason a :class:`FormatError` can have. The parser reports all but POOL_OVERFLOW and BUDGET_EXCEEDED, which
#: only the sampler can know; it reports them through :meth:`Parser.fail`.
FORMAT_ERRORS = (
    DUPLICATE_FORK,
    POOL_OVERFLOW,
    UNKNOWN_JOIN,
    REPEATED_JOIN,
    NESTED_TAG,
    UNCLOSED_TAG,
    MISMATCHED_CLOSE,
    NO_ANSWER,
    NO_RETURN,
    BUDGET_EXCEEDED,
)


@dataclass(frozen=True, slots=True)
class Span:
    """Where an action stands, in characters of the agent's own text (:attr:`Parser.text`).

    ``[start, stop)`` is everything from the first ``<`` to the last ``>``; ``[begin, end)`` is the inner text.
    ``overrun`` holds the characters of the piece that completed the action which follow its last ``>``.
    """

    start: int
    begin: int
    end: int
    stop: int
    overrun: str = ""


NOWHERE = Span(0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Fork:
    index: int
    subquery: str
    span: Span = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class Join:
    index: int
    span: Span = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class Answer:
    text: str
    span: Span = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class Return:
    text: str
    span: Span = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class FormatError:
    """``reason`` is one of :data:`FORMAT_ERRORS`; ``detail`` names the tag."""

    reason: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


Action: TypeAlias = Fork | Join | Answer | Return | FormatError

_TAG = re.compile(r"<(/?)(?:(FORK|JOIN)-([1-9][0-9]{0,2})|(ANSWER|RETURN))>")
_INDEXED_PREFIX = re.compile(r"</?(?:FORK|JOIN)-[1-9][0-9]{0,2}")
_WORDS = [close + name for close in ("<", "</") for name in ("FORK-", "JOIN-", "ANSWER", "RETURN")]
_PREFIXES = frozenset(word[:n] for word in _WORDS for n in range(1, len(word) + 1))
_VOCABULARY = {
    "organizer": frozenset(("FORK", "JOIN", "ANSWER")),
    "worker": frozenset(("FORK", "JOIN", "RETURN")),
    "solo": frozenset(("ANSWER",)),
}


def render(action: Fork | Join | Answer | Return) -> str:
    """The text that makes a :class:`Parser` report ``action``. Raises ValueError where no text can.

    >>> render(Fork(2, "7 + 5 = ?"))
    '<FORK-2>7 + 5 = ?</FORK-2>'
    """
    if isinstance(action, Join):
        return f"<JOIN-{_checked_index(action.index)}>"
    name = f"FORK-{_checked_index(action.index)}" if isinstance(action, Fork) else type(action).__name__.upper()
    inner = action.subquery if isinstance(action, Fork) else action.text
    if tag := _TAG.search(inner):
        raise ValueError(f"text of <{name}>: expected no protocol tag inside, got {tag[0]!r}")
    return f"<{name}>{inner}</{name}>"


def join_insert(index: int, returned: str) -> str:
    """What the runtime inserts after ``<JOIN-index>``: the worker's return, verbatim, and the closing tag."""
    return f"{returned}</JOIN-{_checked_index(index)}>"


def is_tag(text: str) -> bool:
    """Whether ``text`` is one protocol tag, as ``</ANSWER>``, and nothing else."""
    return _TAG.fullmatch(text) is not None


def _checked_index(index: int) -> int:
    if not 1 <= index <= 999:
        raise ValueError(f"index: expected 1 to 999, got {index}")
    return index


class Parser:
    """Reads one agent's text as it is drawn and reports what it asks for.

    Feed it the decoded text of every token that THIS agent drew (:meth:`feed`) and note what the runtime put in
    between (:meth:`insert`); the prompt is not part of it. Pieces may cut a tag anywhere, and a tag may end inside a
    piece: the action's ``span.overrun`` says what came glued to it. After an Answer, a Return or a FormatError the
    parser is :attr:`done` and reports nothing more.

    >>> parser = Parser("organizer")
    >>> parser.feed("<FORK-1>7 + 5</FORK") + parser.feed("-1> meanwhile")
    [Fork(index=1, subquery='7 + 5', span=Span(start=0, begin=8, end=13, stop=22, overrun=' meanwhile'))]
    """

    def __init__(self, role: Role) -> None:
        if role not in _VOCABULARY:
            raise ValueError(f"role: expected one of {', '.join(_VOCABULARY)}, got {role!r}")
        self.role = role
        self.done = False
        self.forked: set[int] = set()
        self.joined: set[int] = set()
        self._vocabulary = _VOCABULARY[role]
        self._pieces: list[str] = []
        self._length = 0
        self._tag = ""  # the characters of a tag that has begun, from its "<"
        self._open: tuple[str, int, int, int] | None = None  # name, index, start, begin

    @property
    def text(self) -> str:
        """All text so far, drawn and inserted, in order."""
        return "".join(self._pieces)

    def insert(self, piece: str) -> None:
        """Note text that the runtime put into this agent's context. It never acts, nor completes a begun tag."""
        self._append(piece)
        self._tag = ""

    def feed(self, piece: str) -> list[Action]:
        """Read the text of one drawn token; return what it completes, in order."""
        base = self._length
        self._append(piece)
        actions: list[Action] = []
        at = 0
        while at < len(piece) and not self.done:
            if not self._tag:
                at = piece.find("<", at)
                if at < 0:
                    break
            tag = self._tag + piece[at]
            at += 1
            if tag in _PREFIXES or _INDEXED_PREFIX.fullmatch(tag):
                self._tag = tag
                continue
            self._tag = ""
            if match := _TAG.fullmatch(tag):
                actions += self._act(match, base + at, piece[at:])
            elif tag[-1] == "<":
                self._tag = "<"
        return actions

    def close(self) -> list[Action]:
        """The agent draws no more: report what is missing, if anything."""
        if self.done:
            return []
        if self._open is not None:
            return [self.fail(UNCLOSED_TAG, _written(*self._open[:2]))]
        return [self.fail(NO_RETURN if self.role == "worker" else NO_ANSWER)]

    def fail(self, reason: str, detail: str = "") -> FormatError:
        """End the agent with a format error, the parser's own or one that only the sampler can see."""
        if reason not in FORMAT_ERRORS:
            raise ValueError(f"reason: expected one of {', '.join(FORMAT_ERRORS)}, got {reason!r}")
        self.done = True
        return FormatError(reason, detail)

    def _append(self, piece: str) -> None:
        self._pieces.append(piece)
        self._length += len(piece)

    def _act(self, match: re.Match[str], stop: int, overrun: str) -> list[Action]:
        """A complete tag ends at character ``stop``."""
        closing, family, digits, plain = match.groups()
        name, index = family or plain, int(digits or 0)
        if name not in self._vocabulary:
            return []
        start = stop - len(match[0])
        if closing:
            return [self._close_tag(name, index, match[0], Span(start, start, start, stop, overrun))]
        if self._open is not None or (self.role == "worker" and family):
            return [self.fail(NESTED_TAG, match[0])]
        if name == "JOIN":
            return [self._join(index, Span(start, stop, stop, stop, overrun))]
        if name == "FORK" and index in self.forked:
            return [self.fail(DUPLICATE_FORK, match[0])]
        self._open = (name, index, start, stop)
        return []

    def _join(self, index: int, span: Span) -> Action:
        if index not in self.forked:
            return self.fail(UNKNOWN_JOIN, f"<JOIN-{index}>")
        if index in self.joined:
            return self.fail(REPEATED_JOIN, f"<JOIN-{index}>")
        self.joined.add(index)
        return Join(index, span)

    def _close_tag(self, name: str, index: int, written: str, tag: Span) -> Action:
        if self._open is None or self._open[:2] != (name, index):
            return self.fail(MISMATCHED_CLOSE, written)
        _, _, start, begin = self._open
        self._open = None
        span = Span(start, begin, tag.start, tag.stop, tag.overrun)
        inner = self.text[begin : tag.start]
        if name == "FORK":
            self.forked.add(index)
            return Fork(index, inner, span)
        self.done = True
        return Answer(inner, span) if name == "ANSWER" else Return(inner, span)


def _written(name: str, index: int) -> str:
    return f"<{name}-{index}>" if index else f"<{name}>"
