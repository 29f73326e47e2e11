"""From token ids to text, token by token, and back: which tokens make up a part of the text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from asyncthink.episode.speaker import Insert
from asyncthink.protocol.codec import Codec
from asyncthink.protocol.tags import join_insert

_LOST = "\ufffd"  # stands for bytes that are no UTF-8
_CONTEXT = 8  # tokens that suffice to begin in the middle: an unfinished character has at most three


class TextStream:
    """The text of one agent, grown token by token; the character each token ends at is kept.

    A token that completes no character (part of a UTF-8 sequence) ends where it began; the token that completes the
    character gets all of it. Bytes that are no UTF-8 become U+FFFD, and nothing raises: all pieces and what
    :meth:`flush` adds are ``codec.decode(ids)``. One exception follows from giving text out as soon as it is known: a
    ``byte_fallback`` decoder turns *every* byte of a run of byte tokens into U+FFFD when one of them is invalid; here
    the characters that were complete before it stay.

    Args:
        codec: whose tokens these are.
        context: the tokens before the first one; their text is not part of the stream.

    >>> from asyncthink.train.tokenizer import build_tokenizer
    >>> stream = TextStream(Codec(build_tokenizer()))
    >>> [stream.push(token) for token in build_tokenizer().encode("3 from 12")], stream.flush(), stream.span(1, 7)
    (['3', ' from', ' 12'], '', (1, 2))
    """

    def __init__(self, codec: Codec, context: Sequence[int] = ()) -> None:
        self._codec = codec
        self._tokens = list(context[-_CONTEXT:])  # the newest ones, as many as the next one's text depends on
        self._before = codec.decode(self._tokens) if self._tokens else ""
        self._held = False  # the last character of _before may be unfinished, and is not in the text yet
        self._bytes: list[int] = []  # byte-fallback tokens of an unfinished character, not in _tokens yet
        self._invalid = False  # in a run of byte-fallback tokens that cannot be decoded any more
        self._clean: list[bool] = []  # whether the text is complete behind each token
        self.text = ""
        self.ends: list[int] = []

    def push(self, token: int) -> str:
        """Take one token, return the text that it adds."""
        byte = self._codec.byte(token)
        piece = self._word(token) if byte is None else self._byte(token)
        self.text += piece
        self.ends.append(len(self.text))
        self._clean.append(not self._held and not self._bytes)
        return piece

    def flush(self) -> str:
        """No more tokens follow: the text that was held back, U+FFFD for an unfinished character; mostly nothing."""
        piece = self._give_up()
        if piece:
            self.text += piece
            self.ends[-1:] = [len(self.text)]
            self._clean[-1:] = [True]
        return piece

    def span(self, begin: int, end: int) -> tuple[int, int]:
        """Tokens ``[first, last)`` that hold characters of ``[begin, end)`` and nothing else; empty is (k, k)."""
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
        """The text of any token but those of byte fallback."""
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
        """The text of a token of byte fallback."""
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
        """What is unfinished stays so."""
        piece = _LOST * (len(self._bytes) + self._held)
        if self._bytes:
            self._remember(self._bytes)
        self._bytes, self._held = [], False
        return piece

    def _remember(self, tokens: list[int]) -> None:
        self._tokens, self._before = tokens, self._codec.decode(tokens)


class ModelTexts:
    """What an episode asks of a tokenizer (:class:`asyncthink.episode.speaker.Texts`)."""

    def __init__(self, codec: Codec, encode: Callable[..., list[int]]) -> None:
        self._codec, self._encode = codec, encode
        self.stop_ids = codec.stop_ids

    def prompt(self, name: str, subquery: str) -> list[int]:
        return self._encode(name, subquery=subquery)

    def stream(self, context: Sequence[int]) -> TextStream:
        return TextStream(self._codec, context)

    def insert(self, index: int, stream: Any, tokens: Sequence[int], returned: tuple[int, int]) -> Insert:
        return join_tokens(self._codec, index, stream, tokens, returned)


def join_tokens(
    codec: Codec, index: int, stream: TextStream, tokens: Sequence[int], returned: tuple[int, int]
) -> Insert:
    """The tokens that a join of worker ``index`` inserts; they decode to the returned text and ``</JOIN-index>``.

    Args:
        codec: encodes what cannot be taken over.
        index: the number in ``<JOIN-index>``.
        stream: the worker's text.
        tokens: the worker's tokens, all those that ``stream`` took.
        returned: characters [begin, end) of ``stream.text``; empty when the worker returned nothing.

    A returned text that holds a control token is encoded anew, whole: such tokens come from templates alone.
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
