"""Conversations rendered by a model's own chat template, and which of the text is the template's. No torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jinja2.exceptions import TemplateError

from asyncthink.protocol.codec import Codec
from asyncthink.protocol.prompts import Part

#: JSON schemas of functions, as ``apply_chat_template(tools=...)`` takes them.
Schemas = Sequence[Mapping[str, Any]]


def render(
    tokenizer: Any,
    messages: Sequence[Mapping[str, Any]],
    tools: Schemas = (),
    *,
    generate: bool = True,
    **switches: bool,
) -> str:
    """The text of a conversation; ``generate`` adds the beginning of the assistant's turn.

    ``switches`` are variables of the template, such as ``enable_thinking``. Raises ValueError if the template refuses
    the conversation.
    """
    try:
        text: str = tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tools=[dict(tool) for tool in tools] or None,
            tokenize=False,
            add_generation_prompt=generate,
            **switches,
        )
    except TemplateError as error:
        raise ValueError(f"messages: the model's chat template refuses them: {error}") from None
    return text


def provenance(tokenizer: Any, fill: Callable[[Sequence[str]], str], contents: Sequence[str]) -> list[Part]:
    """(text, trusted) of ``fill(contents)``: the contents are not trusted, all other text is.

    ``fill`` renders a conversation with these contents. It is called again with marks in their place, which show where
    they stand. If the template rewrites contents (some remove thinking from earlier turns), the two cannot be told
    apart; then all text is trusted, and no content may contain a control token.

    Raises ValueError if the last content is dropped, or one with a control token is rewritten.
    """
    real = fill(contents)
    mark = "\ue000"
    while mark in real or any(mark in content for content in contents):
        mark += "\ue000"
    cores = [content.strip() for content in contents]
    marked = [
        content.replace(core, f"{mark}{number}\ue001", 1) if core else content
        for number, (content, core) in enumerate(zip(contents, cores, strict=True))
    ]
    pieces = re.split(f"{mark}([0-9]+)\ue001", fill(marked))  # text, number, text, ...
    if cores[-1] and str(len(contents) - 1) not in pieces[1::2]:
        raise ValueError(f"chat template: expected it to keep the last turn, got {real!r}")
    parts = [(cores[int(piece)], False) if k % 2 else (piece, True) for k, piece in enumerate(pieces)]
    if "".join(text for text, _ in parts) == real:
        return [part for part in parts if part[0]]
    codec = Codec(tokenizer)
    for number, content in enumerate(contents):
        if codec.forges(content):
            raise ValueError(
                f"message {number}: expected no control token, because the chat template rewrites messages of "
                f"this conversation, and its own control tokens could not be told from these; got {content!r}"
            )
    return [(real, True)]
