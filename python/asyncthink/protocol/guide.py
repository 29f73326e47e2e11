"""Rules: what an agent may write next, as plain data. No torch, no tokenizer.

A :class:`Rule` holds until the agent's next tag acts. It is about the text of the next token: whether the parser
(:mod:`asyncthink.protocol.parser`) could read an illegal tag in it. An engine makes a token mask of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from asyncthink.protocol.tags import TAG, begins_tag, read_tag

__all__ = ["Rule", "Text"]


class Text(StrEnum):
    """The text between tags."""

    FREE = "free"  # anything that completes no tag
    PLAIN = "plain"  # nor anything that looks like the beginning of a tag that it must not write
    LINE = "line"  # the rest of a line: newlines at its end alone, and no "<" except in an allowed tag
    BEGUN = "begun"  # as LINE, but it may not end here
    FIRST = "first"  # the beginning of a line: not blank, no newline, no "<"


@dataclass(frozen=True, slots=True)
class Rule:
    """What an agent may write. A tag must end with its token: a token that goes on behind a tag that acts is illegal.

    ``acting`` are the names of the tags that act where this agent writes them. Of these, it may complete the ones in
    ``tags``, and ``<FORK-i>`` for each i that is not in ``taken`` (None: for no i). ``ends``: whether it may end its
    text. ``unlike`` are texts with which it must not go on.

    >>> rule = Rule(("FORK", "JOIN", "ANSWER"), tags=("<JOIN-1>",), taken=(1,))
    >>> [rule.permits("", text) for text in ("<JOIN-1>", "<JOIN-2>", "<b>", "so: <FORK-2>", "<JOIN-1> and")]
    [True, False, True, True, False]
    >>> rule.permits("<FORK-1", ">"), rule.permits("<FORK-1", "2>")
    (False, True)
    """

    acting: tuple[str, ...]
    tags: tuple[str, ...] = ()
    taken: tuple[int, ...] | None = None
    text: str = Text.FREE
    ends: bool = False
    unlike: tuple[str, ...] = ()

    def may_complete(self, tag: str) -> bool:
        """Whether the agent may complete ``tag``, which acts."""
        if tag in self.tags:
            return True
        match = TAG.fullmatch(tag)
        opens = match is not None and not match[1] and match[2] == "FORK"
        return opens and match is not None and self.taken is not None and int(match[3]) not in self.taken

    def permits(self, tail: str, piece: str) -> bool:
        """Whether ``piece`` may follow, where ``tail`` are the characters of a tag that has begun ("" if none has)."""
        if any(piece.startswith(rest) or rest.startswith(piece) for rest in self.unlike):
            return False
        if self.text not in (Text.FREE, Text.PLAIN):
            return self._in_line(tail, piece)
        read = 0
        while read < len(piece):
            tail, read, match = read_tag(tail, piece, read)
            if match is not None and (match[2] or match[4]) in self.acting:
                return read == len(piece) and self.may_complete(match[0])
        strange = self.text == Text.PLAIN and len(tail) > len("<") and tail != "</"
        return not strange or any(tag.startswith(tail) for tag in self.tags)

    def _in_line(self, tail: str, piece: str) -> bool:
        text, angle, begun = piece.partition("<")
        if tail or angle:
            begun = tail + piece if tail else angle + begun
            fits = begun in self.tags or any(tag.startswith(begun) for tag in self.tags)
            return fits and (bool(tail) or "\n" not in text)
        if self.text == Text.FIRST:
            return bool(piece.strip()) and "\n" not in piece
        return "\n" not in (piece.rstrip("\n") if self.text == Text.LINE else piece)

    def continuing(self, tail: str, character: str) -> bool:
        """Whether ``character`` goes on with the tag that ``tail`` begins."""
        return begins_tag(tail + character) or TAG.fullmatch(tail + character) is not None

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Rule:
        """The rule whose ``dataclasses.asdict`` went through JSON."""
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in data.items()}
        return cls(**values)
