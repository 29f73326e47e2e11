"""Prompt templates in a model's own chat format. Their questions may be conversations."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from asyncthink.protocol.codec import Codec
from asyncthink.protocol.messages import Question, turns
from asyncthink.protocol.prompts import ORGANIZE, DefaultPrompts, Part, PromptFormat
from asyncthink.protocol.rendering import Schemas, provenance, render

_MARK = "(the organizer's words)"
_SLOTS = {
    "organizer": "question",
    "solo": "question",
    "worker_isolated": "subquery",
    "forking_worker_isolated": "subquery",
}
_SYSTEM = ("system", "developer")


def prompts_for(tokenizer: Any, saved: PromptFormat | None = None, default: DefaultPrompts = ORGANIZE) -> PromptFormat:
    """The templates for a model, from its tokenizer alone: no file, no network.

    These are ``saved`` (those of the checkpoint) if given, else ``default`` in the tokenizer's chat format, with its
    instructions as the system turn (:func:`chat_prompts`). If the
    tokenizer has no chat template, they are ``default`` as plain text, after the tokens that the tokenizer adds to
    a text (its begin-of-text token), so that the ids are those of ``tokenizer(text)``.
    """
    if saved is not None:
        return saved
    if getattr(tokenizer, "chat_template", None):
        return chat_prompts(tokenizer, default.plain, default.instructions)
    codec, p = Codec(tokenizer), default.plain
    begun = {name: _begun(codec, getattr(p, name)) for name in _SLOTS if getattr(p, name) is not None}
    return dataclasses.replace(p, **begun)


def reply_parts(tokenizer: Any, question: Question, tools: Schemas = ()) -> list[Part]:
    """(text, trusted) of a question as a chat model's users ask it, without instructions.

    With a chat template it is the text of ``apply_chat_template(question, tools=..., add_generation_prompt=True)``;
    without one, the question after the tokens that the tokenizer adds to a text. Raises ValueError as
    :meth:`ChatPrompts.parts` does, and for a conversation without a chat template.
    """
    conversation = turns(question)
    if getattr(tokenizer, "chat_template", None):
        contents = [content for _, content in conversation]
        roles = [role for role, _ in conversation]
        return provenance(tokenizer, lambda filled: render(tokenizer, _messages(roles, filled), tools), contents)
    if len(conversation) > 1:
        raise ValueError(
            "question: expected text or one message of the user's (this tokenizer has no chat template), "
            f"got {len(conversation)} messages"
        )
    said = conversation[0][1]
    probe = said or "x"  # of an empty text one could not tell what stands before it from what stands behind
    begin = _begun(Codec(tokenizer), probe).removesuffix(probe)
    begin = begin if said else begin.rstrip()
    return [part for part in ((begin, True), (said, False)) if part[0]]


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


def chat_prompts(
    tokenizer: Any, prompts: PromptFormat, instructions: Mapping[str, str] | None = None, tools: Schemas = ()
) -> ChatPrompts:
    """``prompts`` as chat turns that end with the beginning of the assistant's turn.

    With ``instructions`` ("organizer", "solo", "worker_isolated") these are the system turn, before the system prompt
    of the user's, and the question is a plain user turn: a conversation's earlier turns are then the same tokens in
    every later prompt. Without them, or if the chat template has no system turn, the last user turn holds the whole
    plain template.

    A worker with shared context starts in the middle of the organizer's turn. So ``worker_shared`` becomes the end of
    that turn, a user turn with the instructions, and the beginning of the assistant's turn; so does
    ``forking_worker_shared``. Templates with a switch for the model's own thinking have it off. ``tools`` are declared
    as the chat template does. Raises ValueError if the template alters or drops a turn.
    """
    if instructions is not None and not _has_system_turn(tokenizer):
        instructions = None

    def opening(name: str) -> list[dict[str, str]]:
        if instructions is None:
            return _messages(["user"], [getattr(prompts, name)])
        return _with_instructions(instructions[name], _messages(["user"], ["{" + _SLOTS[name] + "}"]))

    def shown(messages: Sequence[Mapping[str, str]]) -> str:
        text = render(tokenizer, messages, tools, enable_thinking=False)
        if messages[-1]["content"].strip() not in text:
            raise ValueError(f"chat template: expected it to keep the last turn, got {text!r}")
        return text

    def continued(worker: str) -> str:
        later = _messages(["assistant", "user"], [_MARK, worker])
        shared = shown([*opening("organizer"), *later])
        if _MARK not in shared:
            raise ValueError(f"chat template: expected it to keep the assistant's turn, got {shared!r}")
        return shared.partition(_MARK)[2]

    forking = prompts.forking_worker_shared, prompts.forking_worker_isolated
    return ChatPrompts(
        organizer=shown(opening("organizer")),
        worker_shared=continued(prompts.worker_shared),
        worker_isolated=shown(opening("worker_isolated")),
        solo=shown(opening("solo")),
        forking_worker_shared=None if forking[0] is None else continued(forking[0]),
        forking_worker_isolated=None if forking[1] is None else shown(opening("forking_worker_isolated")),
        plain=prompts,
        tokenizer=tokenizer,
        instructions=instructions,
        tools=tuple(tools),
    )


def _has_system_turn(tokenizer: Any) -> bool:
    """Whether the chat template takes a system message and shows its text."""
    try:
        return _MARK in render(tokenizer, _messages(["system", "user"], [_MARK, "x"]), enable_thinking=False)
    except ValueError:
        return False


@dataclass(frozen=True, slots=True)
class ChatPrompts(PromptFormat):
    """Templates in a model's chat format (:func:`chat_prompts`). The question may be a conversation.

    The last message is the question that fills the template. Earlier ones, such as a system prompt, are rendered by the
    model's own chat template. ``plain`` are the templates without the chat format; ``instructions`` the texts of the
    system turn, None where the last user turn holds them; ``tools`` the schemas that every prompt declares.
    """

    plain: PromptFormat
    tokenizer: Any = field(repr=False, compare=False)
    instructions: Mapping[str, str] | None = field(default=None, repr=False, hash=False)
    tools: tuple[Mapping[str, Any], ...] = field(default=(), repr=False, hash=False)

    def with_tools(self, tools: Schemas) -> ChatPrompts:
        """These templates, whose prompts declare ``tools``."""
        return chat_prompts(self.tokenizer, self.plain, self.instructions, tools)

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
        conversation = turns(question if _SLOTS[name] == "question" else subquery)
        said = conversation[-1][1]
        if len(conversation) == 1 and said and said == said.strip():  # a template has nothing to trim
            return PromptFormat.parts(self, name, question=said, subquery=said)
        roles = [role for role, _ in conversation]
        contents = [content for _, content in conversation]
        return provenance(self.tokenizer, lambda filled: self._filled(name, roles, filled), contents)

    def _filled(self, name: str, roles: Sequence[str], contents: Sequence[str]) -> str:
        """The conversation with these contents and the instructions."""
        messages = _messages(roles, contents)
        if self.instructions is None:
            plain = self.plain.fill(name, question=contents[-1], subquery=contents[-1])
            messages[-1] = {"role": "user", "content": plain}
        else:
            messages = _with_instructions(self.instructions[name], messages)
        return render(self.tokenizer, messages, self.tools, enable_thinking=False)


def _with_instructions(instructions: str, messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """``messages`` with the instructions at the head of the system turn."""
    first, *later = messages
    if first["role"] in _SYSTEM:
        return [first | {"content": f"{instructions}\n\n{first['content']}"}, *later]
    return [{"role": "system", "content": instructions}, *messages]


def _messages(roles: Sequence[str], contents: Sequence[str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
