"""Token masks of rules: which tokens a :class:`asyncthink.protocol.guide.Rule` permits.

The parser of the protocol decides, so what a mask permits is what the parser reads. A rule is a handful of states (the
rule, the characters of a begun tag), and each state's mask is computed once: a step only looks masks up. A grammar
engine, which follows a text byte by byte, would compute one for each agent and step, 3 ms for 152K tokens.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from asyncthink.engine.grammar import Bits, token_bytes
from asyncthink.protocol.codec import Codec
from asyncthink.protocol.guide import Rule, Text
from asyncthink.protocol.tags import is_tag

_CAPACITY = 1024  # masks that are kept


class RuleMasks:
    """Masks for one tokenizer, as bits: [ceil(V / 32)] int32, token v at bit ``v % 32`` of word ``v // 32``.

    Never permitted are control tokens other than tags, ids that the tokenizer lacks, and end-of-text tokens where the
    rule does not let the text end.

    Args:
        codec: the tokenizer's.
        vocabulary: V, the width of the logits; at least the number of the codec's tokens is used.

    >>> from asyncthink.engine.grammar import allowed
    >>> from asyncthink.train.tokenizer import build_tokenizer
    >>> codec = Codec(build_tokenizer())
    >>> masks = RuleMasks(codec, 550)
    >>> row = masks.row(Rule(("ANSWER",), tags=("</ANSWER>",)), "</ANSWER")
    >>> codec.encode([(">", False)])[0] in allowed(row), min(codec.stop_ids) in allowed(row)
    (True, False)
    """

    def __init__(self, codec: Codec, vocabulary: int) -> None:
        self.texts = [word.decode(errors="replace") for word in token_bytes(codec)][:vocabulary]
        self.vocabulary = vocabulary
        self._stops = [token for token in codec.stop_ids if token < vocabulary]
        self._known = np.zeros(-(-vocabulary // 32) * 32, bool)  # tokens with a text that may be drawn
        self._by_first: dict[str, list[int]] = defaultdict(list)
        self._angled: list[int] = []  # tokens that may write a tag
        self._spacing: list[int] = []  # others that may end a line, or are blank
        for token, text in enumerate(self.texts):
            if not text or token in codec.stop_ids or (codec.control([token]) and not is_tag(text.strip())):
                continue
            self._known[token] = True
            self._by_first[text[0]].append(token)
            if "<" in text:
                self._angled.append(token)
            elif "\n" in text or not text.strip():
                self._spacing.append(token)
        self._rows: dict[tuple[Rule, str], Bits] = {}

    def row(self, rule: Rule, tail: str) -> Bits:
        """The tokens that ``rule`` permits behind ``tail``, the characters of a tag that has begun ("" for none)."""
        row = self._rows.get((rule, tail))
        if row is None:
            if len(self._rows) >= _CAPACITY:
                self._rows.pop(next(iter(self._rows)))
            row = self._rows[rule, tail] = self._computed(rule, tail)
        return row

    def _computed(self, rule: Rule, tail: str) -> Bits:
        in_line = rule.text not in (Text.FREE, Text.PLAIN)
        # Within a tag, a line permits the rest of the tag alone.
        permitted = np.zeros_like(self._known) if tail and in_line else self._known.copy()
        if in_line and not tail:
            for token in self._spacing:
                permitted[token] = rule.permits("", self.texts[token])
        for token in self._doubtful(rule, tail):
            permitted[token] = rule.permits(tail, self.texts[token])
        permitted[self._stops] = rule.ends
        return np.packbits(permitted, bitorder="little").view(np.int32)

    def _doubtful(self, rule: Rule, tail: str) -> list[int]:
        """Tokens whose permission depends on more than the kind of text."""
        tokens = list(self._angled)
        firsts = {rest[0] for rest in rule.unlike}
        if tail:
            firsts |= {first for first in self._by_first if rule.continuing(tail, first)}
        for first in firsts:
            tokens += self._by_first.get(first, [])
        return tokens
