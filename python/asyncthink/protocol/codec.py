"""Text to token ids: a prompt is encoded once, as a whole, and its control tokens come from templates alone."""

from __future__ import annotations

import itertools
import json
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tokenizers import Encoding, Tokenizer

from asyncthink.protocol.prompts import Part
from asyncthink.protocol.tags import is_tag


class Codec:
    """A transformers fast tokenizer, reduced to what the sampler needs.

    It uses a copy of the tokenizer's backend, without truncation and padding. So later changes of the tokenizer change
    no prompt. Codecs of one unchanged tokenizer share that copy.

    Args:
        tokenizer: any transformers tokenizer with a ``tokenizers`` backend.
        stop_ids: token ids at which an agent ends, in addition to the tokenizer's end of text: those of the model's
            ``generation_config``, special or not, as in transformers' ``generate``. Protocol tags are ignored: a
            checkpoint may list ``</ANSWER>`` as an end for other programs, but here it is a tag.

    *Control tokens* are the tokenizer's special tokens, and those of ``stop_ids`` that are added tokens.

    Raises:
        ValueError: the tokenizer has no ``tokenizers`` backend, or one with a part written in Python.

    >>> from asyncthink.train.tokenizer import build_tokenizer
    >>> codec = Codec(build_tokenizer())
    >>> ids = codec.encode([("12<eos>", True), ("<eos>", False)])
    >>> codec.decode(ids), [codec.alone(token) for token in ids]
    ('12<eos><eos>', ['12', '<eos>', '<', 'e', 'o', 's', '>'])
    """

    def __init__(self, tokenizer: object, stop_ids: Sequence[int] = ()) -> None:
        backends = _backends(tokenizer)
        self.backend, self._following = backends.whole, backends.following
        eos = getattr(tokenizer, "eos_token_id", None)
        ends = {token for token in stop_ids if not is_tag(self.decode([token]).strip())}
        self.stop_ids = frozenset(ends if eos is None else ends | {eos})
        added = self.backend.get_added_tokens_decoder()
        self._control = frozenset(k for k, token in added.items() if token.special or k in self.stop_ids)
        self._bytes, self._alone = backends.bytes, backends.alone
        #: Whether the bytes of a text are the concatenated bytes of its tokens, in any context.
        self.concatenates = backends.concatenates
        unknown = getattr(tokenizer, "unk_token_id", None)
        self._unknown = (unknown, added[unknown].content) if unknown in added else None

    def encode(self, parts: Sequence[Part], *, continues: bool = False) -> list[int]:
        """Token ids of the concatenated parts, encoded as a whole, with nothing added before or after.

        The ids are those of ``tokenizer(text, add_special_tokens=False)``, unless characters outside of trusted parts
        would become a control token. Then the text is cut after that token's first character, and its pieces are
        encoded separately, so that the model reads the characters as ordinary text. (A control token of a single
        character has no other spelling; it is dropped.)

        Args:
            parts: (text, trusted) in order.
            continues: the ids will follow others, so no dummy prefix (SentencePiece's leading space) is added.
        """
        text = "".join(part for part, _ in parts)
        return self._encode(text, 0, len(text), _trusted(parts), continues)

    def forges(self, text: str) -> bool:
        """Whether ``text``, encoded without protection, would contain a control token."""
        encoding = self.backend.encode(text, add_special_tokens=False)
        return any(True for _ in self._forged(encoding, text, 0, []))

    def control(self, tokens: Sequence[int]) -> bool:
        """Whether one of the tokens is a control token."""
        return not self._control.isdisjoint(tokens)

    def byte(self, token: int) -> int | None:
        """The byte of a byte-fallback token (``<0x0A>``); None for any other token."""
        return self._bytes.get(token)

    def alone(self, token: int) -> str:
        """The text of one token by itself, cached."""
        if token not in self._alone:
            self._alone[token] = self.decode([token])
        return self._alone[token]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of the tokens, control tokens included."""
        return self.backend.decode(list(tokens), skip_special_tokens=False)

    def _encode(self, text: str, begin: int, end: int, trusted: list[tuple[int, int]], continues: bool) -> list[int]:
        """Ids of ``text[begin:end]``."""
        piece = text[begin:end]
        if not piece:
            return []
        encoding = (self._following if continues else self.backend).encode(piece, add_special_tokens=False)
        if not self.control(encoding.ids):
            return list(encoding.ids)
        gaps = list(self._forged(encoding, piece, begin, trusted))
        if not gaps:
            return self._after_control(encoding, piece) if continues else list(encoding.ids)
        starts, stops = [begin, *(resume for _, resume in gaps)], [*(stop for stop, _ in gaps), end]
        ids: list[int] = []
        for number, (start, stop) in enumerate(zip(starts, stops, strict=True)):
            ids += self._encode(text, start, stop, trusted, continues or number > 0)
        return ids

    def _forged(
        self, encoding: Encoding, piece: str, base: int, trusted: list[tuple[int, int]]
    ) -> Iterator[tuple[int, int]]:
        """Where the text must be cut: (end of the piece before, start of the piece after), for each forged token."""
        for token, (first, last) in zip(encoding.ids, encoding.offsets, strict=True):
            written = piece[first:last]
            if token not in self._control or not written.strip():
                continue
            if self._unknown and token == self._unknown[0] and written.strip().lower() != self._unknown[1].lower():
                continue  # a character that the vocabulary lacks
            first += len(written) - len(written.lstrip())  # a token may include adjacent spaces
            last -= len(written) - len(written.rstrip())
            if not any(start <= base + first and base + last <= stop for start, stop in trusted):
                single = last - first == 1
                yield base + first + (not single), base + first + 1

    def _after_control(self, encoding: Encoding, piece: str) -> list[int]:
        """Omit the dummy prefix at the beginning only: after a control token, encode the text as in a whole prompt."""
        ids = list(encoding.ids)
        first = next(k for k, token in enumerate(ids) if token in self._control)
        if self._following is self.backend:
            return ids
        rest = piece[encoding.offsets[first][0] :]
        return ids[:first] + list(self.backend.encode(rest, add_special_tokens=False).ids)


@dataclass(frozen=True, slots=True)
class _Backends:
    """Copies of one tokenizer's backend: for a text at the beginning, and for one that follows other tokens."""

    state: tuple[Any, ...]
    whole: Tokenizer
    following: Tokenizer
    bytes: dict[int, int]
    concatenates: bool
    alone: dict[int, str] = field(default_factory=dict)


_COPIES: weakref.WeakKeyDictionary[object, _Backends] = weakref.WeakKeyDictionary()


def _backends(tokenizer: object) -> _Backends:
    """The copies of this tokenizer's backend; copied again if it has changed."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise ValueError(f"tokenizer: expected a fast (tokenizers-backed) tokenizer, got {type(tokenizer).__name__}")
    components = backend.normalizer, backend.pre_tokenizer, backend.post_processor, backend.decoder
    added = [(k, repr(token)) for k, token in backend.get_added_tokens_decoder().items()]
    try:
        state = (backend.get_vocab_size(), *(part and part.__getstate__() for part in components), added)
    except Exception as error:  # a component written in Python
        raise ValueError(f"tokenizer: expected one that can be saved as JSON, got {error}") from None
    known = _COPIES.get(tokenizer)
    if known is None or known.state != state:
        whole = Tokenizer.from_str(backend.to_str())
        whole.no_truncation()
        whole.no_padding()
        decoder = whole.decoder.__getstate__() if whole.decoder else b"{}"
        concatenates = json.loads(decoder).get("type") in ("ByteLevel", "Fuse")
        following = _without_dummy_prefix(whole)
        known = _COPIES[tokenizer] = _Backends(state, whole, following, _fallback(whole, decoder), concatenates)
    return known


def _fallback(backend: Tokenizer, decoder: bytes) -> dict[int, int]:
    """Token id -> byte, for the tokens that the decoder reads as bytes; empty without byte fallback."""
    if b'"ByteFallback"' not in decoder:
        return {}
    ids = {byte: backend.token_to_id(f"<0x{byte:02X}>") for byte in range(256)}
    return {token: byte for byte, token in ids.items() if token is not None}


def _without_dummy_prefix(backend: Tokenizer) -> Tokenizer:
    """The tokenizer without a dummy prefix before a text; ``backend`` itself if it adds none."""
    states = {
        "normalizer": backend.normalizer and json.loads(backend.normalizer.__getstate__()),
        "pre_tokenizer": backend.pre_tokenizer and json.loads(backend.pre_tokenizer.__getstate__()),
    }
    bare = {name: _bare(state) for name, state in states.items()}
    return backend if bare == states else Tokenizer.from_str(json.dumps(json.loads(backend.to_str()) | bare))


def _bare(state: Any) -> Any:
    """A normalizer or pre-tokenizer, as its JSON, without the parts that add a dummy prefix before a text."""
    if not isinstance(state, dict):
        return state
    if state["type"] == "Prepend":
        return None
    if state["type"] == "Metaspace":
        return state | {"prepend_scheme": "never"}
    if state["type"] == "ByteLevel":
        return state | {"add_prefix_space": False}
    for name in ("normalizers", "pretokenizers"):
        if name in state:
            state = state | {name: [part for part in map(_bare, state[name]) if part is not None]}
    return state


def _trusted(parts: Sequence[Part]) -> list[tuple[int, int]]:
    """Characters [start, stop) of the trusted stretches of the concatenated parts; adjacent ones are merged."""
    stretches, start = [], 0
    for trusted, group in itertools.groupby(filter(lambda part: part[0], parts), key=lambda part: part[1]):
        length = sum(len(text) for text, _ in group)
        if trusted:
            stretches.append((start, start + length))
        start += length
    return stretches
