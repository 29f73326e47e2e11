"""The incremental parser of one agent's text. No torch, no tokenizer."""

from __future__ import annotations

import re

from asyncthink.protocol.tags import (
    DUPLICATE_FORK,
    FORMAT_ERRORS,
    MISMATCHED_CLOSE,
    NESTED_TAG,
    NO_ANSWER,
    NO_RETURN,
    REPEATED_JOIN,
    UNCLOSED_TAG,
    UNKNOWN_JOIN,
    VOCABULARY,
    Action,
    Answer,
    Fork,
    FormatError,
    Join,
    Return,
    Role,
    Span,
    read_tag,
)


class Parser:
    """Reads one agent's text as it is drawn, and reports the actions of its tags.

    Pass it the text of every token that this agent drew (:meth:`feed`), and the text that the runtime inserted
    (:meth:`insert`), but not the prompt. A tag may begin and end inside of pieces; the action's ``span.overrun`` is the
    rest of its last piece. After an Answer, a Return or a FormatError the parser is :attr:`done` and reports nothing
    more.

    Args:
        role: an organizer may fork, a solo agent may not.
        may_fork: whether a worker may fork and join workers of its own.

    Raises ValueError for another role.

    >>> parser = Parser("organizer")
    >>> parser.feed("<FORK-1>7 + 5</FORK") + parser.feed("-1> meanwhile")
    [Fork(index=1, subquery='7 + 5', span=Span(start=0, begin=8, end=13, stop=22, overrun=' meanwhile'))]
    """

    def __init__(self, role: Role, may_fork: bool = False) -> None:
        if role not in VOCABULARY:
            raise ValueError(f"role: expected one of {', '.join(VOCABULARY)}, got {role!r}")
        self.role = role
        self.may_fork = role == "organizer" or (role == "worker" and may_fork)
        self.done = False
        self.forked: set[int] = set()
        self.joined: set[int] = set()
        self._vocabulary = VOCABULARY[role]
        self._pieces: list[str] = []
        self._length = 0
        self._tag = ""  # the characters of a tag that has begun, from its "<"
        self._open: tuple[str, int, int, int] | None = None  # name, index, start, begin

    @property
    def text(self) -> str:
        """All text so far, drawn and inserted, in order."""
        return "".join(self._pieces)

    @property
    def tail(self) -> str:
        """The characters of a tag that has begun, from its "<"; "" if none has."""
        return self._tag

    @property
    def open(self) -> str | None:
        """The opening tag that is not closed yet, such as ``<FORK-1>``."""
        return None if self._open is None else _written(*self._open[:2])

    @property
    def inner(self) -> str:
        """The text behind the opening tag that is not closed yet; "" if there is none."""
        return "" if self._open is None else self.text[self._open[3] :]

    def insert(self, piece: str) -> None:
        """Add text that the runtime inserted. It never acts, and it never completes a tag that has begun."""
        self._append(piece)
        self._tag = ""

    def feed(self, piece: str) -> list[Action]:
        """Read the text of one drawn token; return the actions that it completes, in order."""
        base = self._length
        self._append(piece)
        actions: list[Action] = []
        read = 0  # characters of the piece
        while read < len(piece) and not self.done:
            self._tag, read, match = read_tag(self._tag, piece, read)
            if match is not None:
                actions += self._act(match, base + read, piece[read:])
        return actions

    def close(self) -> list[Action]:
        """The agent draws no more: report a missing or open tag, if there is one."""
        if self.done or self.role == "reply":
            return []
        if self._open is not None:
            return [self.fail(UNCLOSED_TAG, _written(*self._open[:2]))]
        return [self.fail(NO_RETURN if self.role == "worker" else NO_ANSWER)]

    def conclude(self) -> Answer | Return | None:
        """End the agent inside its answer or return, as if the closing tag stood here; None if it is in neither."""
        if self.done or self._open is None or self._open[0] not in ("ANSWER", "RETURN"):
            return None
        name, _, start, begin = self._open
        self.done, end = True, self._length
        span = Span(start, begin, end, end)
        return (Answer if name == "ANSWER" else Return)(self.text[begin:end], span)

    def fail(self, reason: str, detail: str = "") -> FormatError:
        """End the agent with a format error: the parser's own, or one that the episode core detected."""
        if reason not in FORMAT_ERRORS:
            raise ValueError(f"reason: expected one of {', '.join(FORMAT_ERRORS)}, got {reason!r}")
        self.done = True
        return FormatError(reason, detail)

    def _append(self, piece: str) -> None:
        self._pieces.append(piece)
        self._length += len(piece)

    def _act(self, match: re.Match[str], stop: int, overrun: str) -> list[Action]:
        """Act on a complete tag that ends at character ``stop``."""
        closing, family, digits, plain = match.groups()
        name, index = family or plain, int(digits or 0)
        if name not in self._vocabulary:
            return []
        start = stop - len(match[0])
        if closing:
            return [self._close_tag(name, index, match[0], Span(start, start, start, stop, overrun))]
        if self._open is not None or (self.role == "worker" and family and not self.may_fork):
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
