"""The tags of the protocol: grammar, actions, format errors. No torch, no tokenizer.

========================================= ======================================== ==================
text                                      what happens                             who may write it
========================================= ======================================== ==================
``<FORK-i>sub-query</FORK-i>``            worker i starts on the sub-query         organizer, and a
``<JOIN-i>``                              the runtime inserts worker i's return    worker that may fork
                                          and ``</JOIN-i>``
``<ANSWER>text</ANSWER>``                 the episode ends                         organizer, solo
``<RETURN>text</RETURN>``                 the worker ends                          worker
========================================= ======================================== ==================

i is 1 to 999 without leading zeros, names are upper case, a tag holds no spaces: ``<FORK-0>``, ``<FORK-01>``,
``<fork-1>``, ``<JOIN - 1>`` and ``<b>`` are text. A tag of another role is text too (``<RETURN>`` from an organizer,
``<FORK-1>`` from a solo agent; any tag in a reply, whose whole text is the answer), with one exception: in the text of
a worker that may not fork, FORK and JOIN tags are the format error :data:`NESTED_TAG`. Each agent numbers its own
workers. Source: AsyncThink, arXiv 2510.26658, section 2, where no worker may fork.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Role = Literal["organizer", "worker", "solo", "reply"]

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
#: Every reason of a :class:`FormatError`. The parser reports all but POOL_OVERFLOW and BUDGET_EXCEEDED: those the
#: episode core detects, and reports through :meth:`asyncthink.protocol.parser.Parser.fail`.
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

    ``[start, stop)`` runs from the first ``<`` to the last ``>``; ``[begin, end)`` is the inner text. ``overrun`` holds
    the characters after the last ``>`` in the piece that completed the action.
    """

    start: int
    begin: int
    end: int
    stop: int
    overrun: str = ""


_NOWHERE = Span(0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Fork:
    """``<FORK-index>subquery</FORK-index>``"""

    index: int
    subquery: str
    span: Span = field(default=_NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class Join:
    """``<JOIN-index>``"""

    index: int
    span: Span = field(default=_NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class Answer:
    """``<ANSWER>text</ANSWER>``"""

    text: str
    span: Span = field(default=_NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class Return:
    """``<RETURN>text</RETURN>``"""

    text: str
    span: Span = field(default=_NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class FormatError:
    """``reason`` is one of :data:`FORMAT_ERRORS`; ``detail`` names the tag."""

    reason: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


Action: TypeAlias = Fork | Join | Answer | Return | FormatError

TAG = re.compile(r"<(/?)(?:(FORK|JOIN)-([1-9][0-9]{0,2})|(ANSWER|RETURN))>")
_INDEXED_PREFIX = re.compile(r"</?(?:FORK|JOIN)-[1-9][0-9]{0,2}")
_WORDS = [close + name for close in ("<", "</") for name in ("FORK-", "JOIN-", "ANSWER", "RETURN")]
_PREFIXES = frozenset(word[:n] for word in _WORDS for n in range(1, len(word) + 1))
#: The names of the tags that act, by the role of the agent that writes them.
VOCABULARY: dict[str, frozenset[str]] = {
    "organizer": frozenset(("FORK", "JOIN", "ANSWER")),
    "worker": frozenset(("FORK", "JOIN", "RETURN")),
    "solo": frozenset(("ANSWER",)),
    "reply": frozenset(),  # the whole text is the answer
}


def render(action: Fork | Join | Answer | Return) -> str:
    """The text that a parser reads as ``action``. Raises ValueError where there is none.

    >>> render(Fork(2, "7 + 5 = ?"))
    '<FORK-2>7 + 5 = ?</FORK-2>'
    """
    if isinstance(action, Join):
        return f"<JOIN-{_checked_index(action.index)}>"
    name = f"FORK-{_checked_index(action.index)}" if isinstance(action, Fork) else type(action).__name__.upper()
    inner = action.subquery if isinstance(action, Fork) else action.text
    if tag := TAG.search(inner):
        raise ValueError(f"text of <{name}>: expected no protocol tag inside, got {tag[0]!r}")
    return f"<{name}>{inner}</{name}>"


def join_insert(index: int, returned: str) -> str:
    """What the runtime inserts after ``<JOIN-index>``: the worker's return, verbatim, and the closing tag."""
    return f"{returned}</JOIN-{_checked_index(index)}>"


def is_tag(text: str) -> bool:
    """Whether ``text`` is exactly one protocol tag, such as ``</ANSWER>``."""
    return TAG.fullmatch(text) is not None


def begins_tag(text: str) -> bool:
    """Whether ``text`` is the beginning of a protocol tag, or could be: ``<``, ``</FOR``, ``<JOIN-12``."""
    return text in _PREFIXES or _INDEXED_PREFIX.fullmatch(text) is not None


def read_tag(tag: str, piece: str, read: int) -> tuple[str, int, re.Match[str] | None]:
    """Read ``piece`` from character ``read`` on, up to the end of the next tag.

    Args:
        tag: the characters of a tag that has begun before, from its "<"; "" if none has.
        piece: the text; ``0 <= read < len(piece)``.
        read: how much of it was read before.

    Returns:
        The characters of a tag that has begun by then, the number of characters read by then, and the match of
        :data:`TAG` if a tag ended there; None at the end of the piece.

    >>> read_tag("<JO", "IN-1> and <FO", 0)
    ('', 5, <re.Match object; span=(0, 8), match='<JOIN-1>'>)
    >>> read_tag("", "IN-1> and <FO", 5)
    ('<FO', 13, None)
    """
    while read < len(piece):
        if not tag:
            read = piece.find("<", read)
            if read < 0:
                return "", len(piece), None
        tag += piece[read]
        read += 1
        if begins_tag(tag):
            continue
        if match := TAG.fullmatch(tag):
            return "", read, match
        tag = "<" if tag[-1] == "<" else ""
    return tag, read, None


def _checked_index(index: int) -> int:
    if not 1 <= index <= 999:
        raise ValueError(f"index: expected 1 to 999, got {index}")
    return index
