"""Between token ids and text: encoding without surprises, decoding token by token."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream


class Codec:
    """A transformers fast tokenizer, reduced to what the sampler needs.

    Args:
        tokenizer: any transformers tokenizer with a ``tokenizers`` backend.
        stop_ids: more token ids at which an agent ends, beside the tokenizer's own end of text. Only special tokens
            count: a checkpoint may name ``</ANSWER>`` as an end for other programs, but here it is text that acts.

    Raises:
        ValueError: the tokenizer has no ``tokenizers`` backend (incremental decoding needs it).
    """

    def __init__(self, tokenizer: object, stop_ids: Sequence[int] = ()) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, Tokenizer):
            raise ValueError(
                f"tokenizer: expected a fast (tokenizers-backed) tokenizer, got {type(tokenizer).__name__}"
            )
        self.backend = backend
        eos = getattr(tokenizer, "eos_token_id", None)
        special = {token for token in stop_ids if not backend.decode([token], skip_special_tokens=True)}
        self.stop_ids = frozenset(special) | (frozenset() if eos is None else {eos})

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text`` alone: nothing added in front or behind."""
        return list(self.backend.encode(text, add_special_tokens=False).ids) if text else []


class TextStream:
    """The text of one agent, grown token by token; the character each token ends at is kept.

    A token that completes no character (part of a UTF-8 sequence) ends where it began; the token that completes the
    character gets all of it.
    """

    def __init__(self, codec: Codec, context: Sequence[int] = ()) -> None:
        self._backend = codec.backend
        self._stream = DecodeStream(ids=list(context[-8:]), skip_special_tokens=False)
        self.text = ""
        self.ends: list[int] = []

    def push(self, token: int) -> str:
        """Take one token, return the text that it adds."""
        piece = self._stream.step(self._backend, token) or ""
        self.text += piece
        self.ends.append(len(self.text))
        return piece

    def span(self, begin: int, end: int) -> tuple[int, int]:
        """Tokens ``[first, last)`` that lie wholly inside the characters ``[begin, end)``; empty is (k, k)."""
        first = 0
        while first < len(self.ends) and (self.ends[first - 1] if first else 0) < begin:
            first += 1
        last = first
        while last < len(self.ends) and self.ends[last] <= end and (self.ends[last - 1] if last else 0) < end:
            last += 1
        return first, last
