"""Grammars over tokens: which tokens continue a text of a Lark grammar, a regular expression or a JSON schema.

llguidance does the work; here a model's tokenizer becomes one of its own, and its error states become exceptions.
"""

from __future__ import annotations

import json
import string
from collections.abc import Mapping, Sequence
from typing import Any

import llguidance
import numpy as np
from numpy.typing import NDArray

from asyncthink.protocol.codec import Codec
from asyncthink.protocol.tags import is_tag

#: [N, ceil(V / 32)] or one row of it: bit ``v % 32`` of word ``v // 32`` is 1 where token v may be drawn.
Bits = NDArray[np.int32]


def width(vocabulary: int) -> int:
    """Words of a mask's row: ``ceil(V / 32)``."""
    return -(-vocabulary // 32)


class Grammars:
    """Compiles grammars for one tokenizer.

    Args:
        tokenizer: any transformers tokenizer with a ``tokenizers`` backend, or its :class:`Codec`. Byte-level and
            byte-fallback vocabularies are known by their bytes. Control tokens (see :class:`Codec`) are never text,
            except those that spell a protocol tag.
        vocabulary: V, the width of the model's logits; None for the tokenizer's. Ids that the tokenizer lacks are
            forbidden.

    Raises:
        ValueError: the tokenizer has no end of text, or more tokens than ``vocabulary``.

    >>> from asyncthink.train.tokenizer import build_tokenizer
    >>> grammars = Grammars(build_tokenizer())
    >>> matcher = grammars.matcher(regex="[a-c][0-9]")
    >>> grammars.texts(matcher)
    ['a', 'b', 'c']
    """

    def __init__(self, tokenizer: object, vocabulary: int | None = None) -> None:
        codec = tokenizer if isinstance(tokenizer, Codec) else Codec(tokenizer)
        words = token_bytes(codec)
        self.vocabulary = len(words) if vocabulary is None else vocabulary
        if len(words) > self.vocabulary:
            raise ValueError(f"vocabulary: expected at least the tokenizer's {len(words)} tokens, got {vocabulary}")
        if not codec.stop_ids:
            raise ValueError("tokenizer: expected an end-of-text token, got none")
        self.words = words
        self.stops = sorted(codec.stop_ids)
        self._tokenizer = llguidance.LLTokenizer(_wrapper(codec, words), eos_token=self.stops)
        self._executor = llguidance.LLExecutor()

    def matcher(
        self, *, lark: str | None = None, regex: str | None = None, json_schema: str | Mapping[str, Any] | None = None
    ) -> Matcher:
        """A matcher at the beginning of a text of the grammar: exactly one of the three is given.

        Raises ValueError, one line, for none or several, and for a grammar that llguidance refuses.
        """
        given = {"lark": lark, "regex": regex, "json_schema": json_schema}
        names = [name for name, value in given.items() if value is not None]
        if len(names) != 1:
            raise ValueError(f"grammar: expected one of {', '.join(given)}, got {', '.join(names) or 'none'}")
        compile_ = llguidance.LLMatcher
        try:
            if lark is not None:
                grammar = compile_.grammar_from_lark(lark)
            elif regex is not None:
                grammar = compile_.grammar_from_regex(regex)
            else:
                assert json_schema is not None
                grammar = compile_.grammar_from_json_schema(
                    json_schema if isinstance(json_schema, str) else json.dumps(json_schema)
                )
        except ValueError as error:
            raise ValueError(f"{names[0]}: {_line(str(error))}") from None
        matcher = compile_(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise ValueError(f"{names[0]}: {_line(matcher.get_error())}")
        return Matcher(matcher, self)

    def fill(self, masks: Bits, matchers: Mapping[int, Matcher]) -> None:
        """Write row k of ``masks`` [N, ceil(V / 32)] for each (k, matcher), in parallel."""
        rows = np.zeros((len(matchers), width(len(self.words))), np.int32)
        work = [(matcher.inner, row) for row, matcher in enumerate(matchers.values())]
        self._executor.unsafe_compute_mask_ptr(work, rows.ctypes.data, rows.shape[1] * 4, len(work))
        for row, (number, matcher) in enumerate(matchers.items()):
            matcher.check()
            masks[number] = 0
            masks[number, : rows.shape[1]] = rows[row]

    def texts(self, matcher: Matcher) -> list[str]:
        """The texts of all tokens that ``matcher`` allows, by their ids: for tests and error messages."""
        row = np.zeros(width(self.vocabulary), np.int32)
        matcher.mask(row)
        return [self.words[token].decode(errors="replace") for token in allowed(row)]


class Matcher:
    """A place in a text of a grammar. Made by :meth:`Grammars.matcher`."""

    def __init__(self, inner: llguidance.LLMatcher, grammars: Grammars) -> None:
        self.inner, self._grammars = inner, grammars

    @property
    def may_stop(self) -> bool:
        """Whether the text so far is complete, so that end-of-text is allowed."""
        return bool(self.inner.is_accepting())

    @property
    def stopped(self) -> bool:
        """Whether nothing but end-of-text is allowed."""
        return bool(self.inner.is_stopped())

    def mask(self, row: Bits) -> None:
        """Write the tokens that may follow into ``row`` [ceil(V / 32)] int32. At a complete text, end-of-text may."""
        self._grammars.fill(row[None], {0: self})

    def consume(self, token: int) -> None:
        """Go on behind ``token``. Raises ValueError if the grammar forbids it; the matcher stays where it is."""
        if self.inner.validate_tokens([token]) != 1:
            raise ValueError(f"token: expected one that the grammar allows, got {token}")
        self.inner.consume_token(token)
        self.check()

    def copy(self) -> Matcher:
        """A matcher at the same place that moves on by itself."""
        return Matcher(self.inner.deep_copy(), self._grammars)

    def rollback(self, count: int) -> None:
        """Go back by ``count`` tokens. Raises ValueError for more than were consumed."""
        before = self.inner.deep_copy()
        if not self.inner.rollback(count):
            self.inner = before
            raise ValueError(f"count: expected at most the number of consumed tokens, got {count}")

    def check(self) -> None:
        """Raises ValueError if llguidance gave up on the grammar (it grew beyond its limits)."""
        if self.inner.is_error():
            raise ValueError(f"grammar: {_line(self.inner.get_error())}")


def allowed(row: Bits) -> list[int]:
    """The tokens of a mask's row, ascending.

    >>> allowed(np.array([0b101, 1], np.int32))
    [0, 2, 32]
    """
    return [int(token) for token in np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little"))]


def token_bytes(codec: Codec) -> list[bytes]:
    """The bytes of each token in the middle of a text, by id; empty for an id that no token has."""
    backend = codec.backend
    vocabulary, added = backend.get_vocab(with_added_tokens=True), backend.get_added_tokens_decoder()
    decoder = backend.decoder.__getstate__().decode() if backend.decoder else ""
    byte_level, spaces = '"ByteLevel"' in decoder, "\u2581" in decoder
    words = [b""] * (max(vocabulary.values(), default=-1) + 1)
    for word, token in vocabulary.items():
        byte = codec.byte(token)
        if token in added:
            words[token] = added[token].content.encode()
        elif byte is not None:
            words[token] = bytes([byte])
        elif byte_level and all(c in _BYTES for c in word):
            words[token] = bytes(_BYTES[c] for c in word)
        else:
            words[token] = (word.replace("\u2581", " ") if spaces else word).encode()
    return words


def _byte_alphabet() -> dict[str, int]:
    """How byte-level tokenizers write a byte as a character: printable ones as themselves, the rest from U+0100 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(0x100 + k): byte for k, byte in enumerate(others)}


_BYTES = _byte_alphabet()


class _Wrapper:
    """The attributes that llguidance reads of a tokenizer."""

    is_tokenizer_wrapper = True
    bos_token_id: int | None = None

    def __init__(self, words: Sequence[bytes], special: Sequence[int], end: int, encode: Any) -> None:
        self.tokens, self.special_token_ids, self.eos_token_id, self._encode = list(words), list(special), end, encode

    def __call__(self, text: str) -> list[int]:
        return list(self._encode(text))


def _wrapper(codec: Codec, words: Sequence[bytes]) -> Any:
    special = [
        token
        for token, word in enumerate(words)
        if codec.control([token]) and not is_tag(word.decode(errors="replace"))
    ]
    return _Wrapper(words, special, min(codec.stop_ids), lambda text: codec.encode([(text, False)], continues=True))


def _line(message: str) -> str:
    """The first line of an error message."""
    return next((line for line in message.splitlines() if line.strip(string.whitespace)), "refused")
