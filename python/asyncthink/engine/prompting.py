"""A filled template as tokens. No torch."""

from __future__ import annotations

from asyncthink.protocol.codec import Codec
from asyncthink.protocol.messages import Question
from asyncthink.protocol.prompts import PromptFormat


def encode_template(
    codec: Codec, prompts: PromptFormat, name: str, *, question: Question = "", subquery: str = ""
) -> list[int]:
    """Tokens of template ``name`` with its slots filled; those of a worker with shared context continue others.

    Raises ValueError for a prompt without tokens, because the first draw needs the logits of one.
    """
    parts = prompts.parts(name, question=question, subquery=subquery)
    continues = name.endswith("worker_shared")
    tokens = codec.encode(parts, continues=continues)
    if not tokens and not continues:
        raise ValueError(f"prompt {name!r}: expected at least one token, got none")
    return tokens
