"""Texts and chat messages as the parts of a context that a program writes. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from asyncthink.protocol.chat import reply_parts
from asyncthink.protocol.codec import Codec
from asyncthink.protocol.messages import Question, check_text, turns
from asyncthink.protocol.prompts import Part
from asyncthink.protocol.rendering import provenance, render

_MARK = "(what the assistant has said)"


def opening_tokens(tokenizer: Any, codec: Codec, prompt: Question) -> list[int]:
    """The tokens of a context that begins with ``prompt``.

    Messages are rendered by the chat template, up to the beginning of the assistant's turn. Text is text: the ids are
    those of ``tokenizer(text)`` without what that puts behind it, and no control token comes from its characters.

    Raises ValueError for messages that :func:`asyncthink.protocol.messages.turns` refuses or that the tokenizer has no
    chat template for.
    """
    if isinstance(prompt, str):
        check_text("prompt", prompt)
        return [*_begin(codec, prompt), *codec.encode([(prompt, False)])]
    turns(prompt, "prompt")
    _require_template(tokenizer, "prompt")
    return codec.encode(reply_parts(tokenizer, prompt))


def continuing_tokens(tokenizer: Any, codec: Codec, text: Question) -> list[int]:
    """The tokens of ``text`` behind what an assistant has said.

    Messages end the assistant's turn, and begin its next one. Raises ValueError as :func:`opening_tokens` does.
    """
    if isinstance(text, str):
        check_text("text", text)
        return codec.encode([(text, False)], continues=True)
    conversation = [("user", "-"), ("assistant", _MARK), *turns(text, "text")]
    _require_template(tokenizer, "text")
    roles = [role for role, _ in conversation]

    def fill(contents: Sequence[str]) -> str:
        messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
        return render(tokenizer, messages)

    parts = provenance(tokenizer, fill, [content for _, content in conversation])
    return codec.encode(_behind_mark(parts), continues=True)


def _behind_mark(parts: Sequence[Part]) -> list[Part]:
    for number, (text, trusted) in enumerate(parts):
        if _MARK in text:
            return [(text.partition(_MARK)[2], trusted), *parts[number + 1 :]]
    raise ValueError(f"chat template: expected it to keep the assistant's turn, got {''.join(t for t, _ in parts)!r}")


def _begin(codec: Codec, text: str) -> list[int]:
    """The tokens that the tokenizer puts in front of a text."""
    plain = codec.backend.encode(text, add_special_tokens=False).ids
    whole = codec.backend.encode(text, add_special_tokens=True).ids
    added = len(whole) - len(plain)
    return next((whole[:k] for k in range(added, 0, -1) if whole[k : k + len(plain)] == plain), [])


def _require_template(tokenizer: Any, name: str) -> None:
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(f"{name}: expected text, as this tokenizer has no chat template, got messages")
