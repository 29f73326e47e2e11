"""Prompt templates in a model's own chat format. Their questions may be conversations."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from jinja2.exceptions import TemplateError

from asyncthink.protocol.codec import Codec
from asyncthink.protocol.messages import Question, turns
from asyncthink.protocol.prompts import DEFAULT_PROMPTS, Part, PromptFormat

_MARK = "(the organizer's words)"
_SLOTS = {
    "organizer": "question",
    "solo": "question",
    "worker_isolated": "subquery",
    "forking_worker_isolated": "subquery",
}


def prompts_for(tokenizer: Any, saved: PromptFormat | None = None) -> PromptFormat:
    """The templates for a model, from its tokenizer alone: no file, no network.

    These are ``saved`` (those of the checkpoint) if given, else the default ones in the tokenizer's chat format. If the
    tokenizer has no chat template, they are the default ones as plain text, after the tokens that the tokenizer adds to
    a text (its begin-of-text token), so that the ids are those of ``tokenizer(text)``.
    """
    if saved is not None:
        return saved
    if getattr(tokenizer, "chat_template", None):
        return chat_prompts(tokenizer, DEFAULT_PROMPTS)
    codec, p = Codec(tokenizer), DEFAULT_PROMPTS
    begun = {name: _begun(codec, getattr(p, name)) for name in _SLOTS if getattr(p, name) is not None}
    return dataclasses.replace(p, **begun)


def _begun(codec: Codec, template: str) -> str:
    """``template`` after the tokens that the tokenizer adds; with a space between them if the ids need one."""
    encoding = codec.backend.encode(template, add_special_tokens=True)
    mask = encoding.special_tokens_mask
    count = mask.index(0) if 0 in mask else 0
    begin = "".join(codec.backend.id_to_token(token) or "" for token in encoding.ids[:count])
    plain = [token for token, special in zip(encoding.ids[count:], mask[count:], strict=True) if not special]
    whole = encoding.ids[:count] + plain
    texts = [begin + template, f"{begin} {template}"]
    return next((text for text in texts if codec.encode([(text, True)]) == whole), texts[0])


def chat_prompts(tokenizer: Any, prompts: PromptFormat) -> ChatPrompts:
    """``prompts`` as chat turns that end with the beginning of the assistant's turn.

    A worker with shared context starts in the middle of the organizer's turn. So ``worker_shared`` becomes the end of
    that turn, a user turn with the instructions, and the beginning of the assistant's turn; so does
    ``forking_worker_shared``. Templates with a switch for
    the model's own thinking have it off. Raises ValueError if the template alters or drops a turn.
    """

    def render(*said: str) -> str:
        text = _render(tokenizer, list(zip(("user", "assistant", "user"), said, strict=False)))
        if said[-1].strip() not in text:
            raise ValueError(f"chat template: expected it to keep the last turn, got {text!r}")
        return text

    def continued(worker: str) -> str:
        shared = render(prompts.organizer, _MARK, worker)
        if _MARK not in shared:
            raise ValueError(f"chat template: expected it to keep the assistant's turn, got {shared!r}")
        return shared.partition(_MARK)[2]

    forking = prompts.forking_worker_shared, prompts.forking_worker_isolated
    return ChatPrompts(
        organizer=render(prompts.organizer),
        worker_shared=continued(prompts.worker_shared),
        worker_isolated=render(prompts.worker_isolated),
        solo=render(prompts.solo),
        forking_worker_shared=None if forking[0] is None else continued(forking[0]),
        forking_worker_isolated=None if forking[1] is None else render(forking[1]),
        plain=prompts,
        tokenizer=tokenizer,
    )


@dataclass(frozen=True, slots=True)
class ChatPrompts(PromptFormat):
    """Templates in a model's chat format. The question may be a conversation.

    The last message is the question that fills the template. Earlier ones, such as a system prompt, are rendered by the
    model's own chat template. ``plain`` are the templates without the chat format.
    """

    plain: PromptFormat
    tokenizer: Any = field(repr=False, compare=False)

    def parts(self, name: str, *, question: Question = "", subquery: str = "") -> list[Part]:
        """(text, trusted) of the prompt: the text of ``tokenizer.apply_chat_template(..., tokenize=False)``.

        The text of the templates is trusted, the contents of the messages are not. If the chat template rewrites
        messages (some remove thinking from earlier turns), the two cannot be told apart; then all text is trusted, and
        no message may contain a control token.

        Raises:
            ValueError: a question that :func:`asyncthink.protocol.messages.turns` refuses; a conversation that the chat
                template refuses, whose question it drops, or which it rewrites while a message has a control token.
        """
        if name not in _SLOTS:
            return PromptFormat.parts(self, name, subquery=subquery)
        *earlier, (_, said) = turns(question if _SLOTS[name] == "question" else subquery)
        if not earlier and said and said == said.strip():  # a template has nothing to trim
            return PromptFormat.parts(self, name, question=said, subquery=said)
        return self._rendered(name, earlier, said)

    def _rendered(self, name: str, earlier: Sequence[tuple[str, str]], said: str) -> list[Part]:
        contents = [*(content for _, content in earlier), said]
        real = self._filled(name, earlier, contents)
        mark = "\ue000"
        while mark in real or any(mark in content for content in contents):
            mark += "\ue000"
        cores = [content.strip() for content in contents]
        marked = [
            content.replace(core, f"{mark}{number}\ue001", 1) if core else content
            for number, (content, core) in enumerate(zip(contents, cores, strict=True))
        ]
        pieces = re.split(f"{mark}([0-9]+)\ue001", self._filled(name, earlier, marked))  # text, number, text, ...
        last = str(len(contents) - 1)
        if cores[-1] and last not in pieces[1::2]:
            raise ValueError(f"chat template: expected it to keep the last turn, got {real!r}")
        parts = [(cores[int(piece)], False) if k % 2 else (piece, True) for k, piece in enumerate(pieces)]
        if "".join(text for text, _ in parts) == real:
            return [part for part in parts if part[0]]
        codec = Codec(self.tokenizer)
        for number, content in enumerate(contents):
            if codec.forges(content):
                raise ValueError(
                    f"message {number}: expected no control token, because the chat template rewrites messages of "
                    f"this conversation, and its own control tokens could not be told from these; got {content!r}"
                )
        return [(real, True)]

    def _filled(self, name: str, earlier: Sequence[tuple[str, str]], contents: Sequence[str]) -> str:
        """The conversation with these contents, the last of them inside the plain template."""
        last = self.plain.fill(name, question=contents[-1], subquery=contents[-1])
        roles = [role for role, _ in earlier]
        return _render(self.tokenizer, [*zip(roles, contents, strict=False), ("user", last)])


def _render(tokenizer: Any, conversation: Sequence[tuple[str, str]]) -> str:
    """The text of a conversation, up to the beginning of the assistant's turn."""
    messages = [{"role": role, "content": content} for role, content in conversation]
    try:
        text: str = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
    except TemplateError as error:
        raise ValueError(f"messages: the model's chat template refuses them: {error}") from None
    return text
