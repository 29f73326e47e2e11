"""The number-level tokenizer of the shipped checkpoint: a number, a tag, a label or a short word is one token.

The text is the concatenation of the tokens' strings. A number in a list includes its leading space (``" 24"``), a
number in an expression has none (``"24"``).
"""

from __future__ import annotations

import string

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

LARGEST_NUMBER = 199
MOST_TAGS = 8
_LABELS = [f" #{k}:" for k in range(1, 10)] + [f" {letter}:" for letter in "abcdefghi"]
_WORDS = ["none", " from", " start:"]
_ROLES = ["<organizer>", "<worker>", "<solo>"]
_PATTERN = r"none| from| start:| #[1-9]:| [a-i]:| ?(?:1[0-9][0-9]|[1-9][0-9]|[0-9])|[\s\S]"


def tags() -> list[str]:
    """Every protocol tag that is one token."""
    names = [f"{name}-{k}" for name in ("FORK", "JOIN") for k in range(1, MOST_TAGS + 1)] + ["ANSWER", "RETURN"]
    return [f"<{slash}{name}>" for name in names for slash in ("", "/")]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """About 500 tokens: tags, roles, labels, words, numbers 0..199 with and without a leading space, ASCII.

    >>> build_tokenizer().tokenize("<FORK-1>24 from 2 3 start:3</FORK-1>")
    ['<FORK-1>', '24', ' from', ' 2', ' 3', ' start:', '3', '</FORK-1>']
    """
    special = ["<unk>", "<pad>", "<eos>"]
    numbers = [str(value) for value in range(LARGEST_NUMBER + 1)]
    characters = [c for c in string.printable if c not in "\r\x0b\x0c" and not c.isdigit()]
    vocabulary = special + tags() + _ROLES + _LABELS + _WORDS + numbers + [f" {n}" for n in numbers] + characters
    tokenizer = Tokenizer(models.WordLevel({token: k for k, token in enumerate(vocabulary)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_PATTERN), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in tags() + _ROLES])
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token="<pad>",
        eos_token="<eos>",
        clean_up_tokenization_spaces=False,
    )
