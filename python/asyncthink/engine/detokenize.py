"""Token ids to text, token by token, and back: the tokens of a part of the text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from asyncthink.episode.speaker import Insert
from asyncthink.protocol.codec import Codec
from asyncthink.protocol.tags import join_insert

_LOST = "\ufffd"  # replaces invalid UTF-8
_CONTEXT = 8  # tokens that suffice to decode from the middle: an unfinished character spans at most three


class TextStream:
    """The text of one agent, grown token by token, with the character at which each token ends.

    A token that completes no character (part of a UTF-8 sequence) adds no text; the token that completes the character
    adds all of it. Invalid UTF-8 becomes U+FFFD; nothing raises. All pieces, with the text of :meth:`flush`, are
    ``codec.decode(ids)``. There is one exception, because text is returned as soon as it is known: if one byte of a run
    of byte tokens is invalid, a ``byte_fallback`` decoder replaces *every* byte of the run by U+FFFD, while this stream
    keeps the characters that were complete before it.

    Args:
        codec: the tokens' codec.
        context: the tokens before the first one; their text is not part of the stream.

    >>> from asyncthink.train.tokenizer import build_tokenizer
    >>> stream = TextStream(Codec(build_tokenizer()))
    >>> [stream.push(token) for token in build_tokenizer().encode("3 from 12")], stream.flush(), stream.span(1, 7)
    (['3', ' from', ' 12'], '', (1, 2))
    """

    def __init__(self, codec: Codec, context: Sequence[int] = ()) -> None:
        self._codec = codec
        self._tokens = list(context[-_CONTEXT:])  # the last tokens, as many as the text of the next one depends on
        self._before = codec.decode(self._tokens) if self._tokens else ""
        self._held = False  # the last character of _before may be unfinished, and is not in the text yet
        self._bytes: list[int] = []  # byte-fallback tokens of an unfinished character, not in _tokens yet
        self._invalid = False  # within a run of byte-fallback tokens that cannot be decoded
        self._clean: list[bool] = []  # for each token, whether the text up to its end is complete
        self.text = ""
        self.ends: list[int] = []

    def push(self, token: int) -> str:
        """Add one token; return the text that it adds."""
        byte = self._codec.byte(token)
        piece = self._word(token) if byte is None else self._byte(token)
        self.text += piece
        self.ends.append(len(self.text))
        self._clean.append(not self._held and not self._bytes)
        return piece

    def flush(self) -> str:
        """End the text; return U+FFFD for each part of an unfinished character, usually nothing."""
        piece = self._give_up()
        if piece:
            self.text += piece
            self.ends[-1:] = [len(self.text)]
            self._clean[-1:] = [True]
        return piece

    def span(self, begin: int, end: int) -> tuple[int, int]:
        """The tokens ``[first, last)`` whose characters are all in ``[begin, end)``; (k, k) if there are none."""
        starts = [0, *self.ends]
        first = 0
        while first < len(self.ends) and (starts[first] < begin or (first > 0 and not self._clean[first - 1])):
            first += 1
        last = first
        while last < len(self.ends) and self.ends[last] <= end and starts[last] < end:
            last += 1
        while last > first and not self._clean[last - 1]:
            last -= 1
        return first, last

    def _word(self, token: int) -> str:
        """The text of a token that is not a byte-fallback token."""
        lost = self._give_up() if self._bytes else ""
        self._invalid = False
        alone = self._codec.alone(token)
        if self._codec.concatenates and not self._held and _LOST not in alone:
            self._tokens, self._before = [token], alone
            return lost + alone
        tokens = [*self._tokens, token]
        text = self._codec.decode(tokens)
        held = text.endswith(_LOST)
        piece = text[len(self._before) - self._held : len(text) - held]
        if not held:
            self._remember([token])
        elif len(tokens) > _CONTEXT:
            self._remember(tokens[-(_CONTEXT // 2) :])
        else:
            self._tokens, self._before = tokens, text
        self._held = held
        return lost + piece

    def _byte(self, token: int) -> str:
        """The text of a byte-fallback token."""
        lost = self._give_up() if self._held else ""
        if self._invalid:
            return lost + _LOST
        self._bytes.append(token)
        try:
            bytes(self._codec.byte(k) or 0 for k in self._bytes).decode()
        except UnicodeDecodeError as error:
            if error.reason == "unexpected end of data":
                return lost
            self._invalid = True
            return lost + self._give_up()
        text = self._codec.decode([*self._tokens, *self._bytes])
        piece = text[len(self._before) :]
        self._remember(self._bytes)
        self._bytes = []
        return lost + piece

    def _give_up(self) -> str:
        """Replace an unfinished character by U+FFFD."""
        piece = _LOST * (len(self._bytes) + self._held)
        if self._bytes:
            self._remember(self._bytes)
        self._bytes, self._held = [], False
        return piece

    def _remember(self, tokens: list[int]) -> None:
        self._tokens, self._before = tokens, self._codec.decode(tokens)


class ModelTexts:
    """Text to tokens and back for an episode (:class:`asyncthink.episode.speaker.Texts`)."""

    def __init__(self, codec: Codec, encode: Callable[..., list[int]]) -> None:
        self._codec, self._encode = codec, encode
        self.stop_ids = codec.stop_ids

    def prompt(self, name: str, subquery: str) -> list[int]:
        return self._encode(name, subquery=subquery)

    def stream(self, context: Sequence[int]) -> TextStream:
        return TextStream(self._codec, context)

    def literal(self, text: str) -> list[int]:
        return self._codec.encode([(text, True)], continues=True)

    def insert(self, index: int, stream: Any, tokens: Sequence[int], returned: tuple[int, int]) -> Insert:
        return join_tokens(self._codec, index, stream, tokens, returned)


def join_tokens(
    codec: Codec, index: int, stream: TextStream, tokens: Sequence[int], returned: tuple[int, int]
) -> Insert:
    """The tokens that a join of worker ``index`` inserts; they decode to the returned text and ``</JOIN-index>``.

    Args:
        codec: encodes the text that the worker's own tokens do not cover.
        index: the number in ``<JOIN-index>``.
        stream: the worker's text.
        tokens: the worker's tokens, those of ``stream``.
        returned: characters [begin, end) of ``stream.text``; empty if the worker returned nothing.

    If the worker's tokens of the text contain a control token, all of the text is encoded again, because control tokens
    come from templates alone.
    """
    begin, end = returned
    first, last = stream.span(begin, end)
    if first == last or codec.control(tokens[first:last]):
        first = last
        head, tail = stream.text[begin:end], ""
    else:
        head = stream.text[begin : stream.ends[first - 1] if first else 0]
        tail = stream.text[stream.ends[last - 1] : end]
    lead, rest = (codec.encode([(text, False)], continues=True) for text in (head, tail))
    return Insert(lead, (first, last), rest, codec.encode([(join_insert(index, ""), True)], continues=True))
