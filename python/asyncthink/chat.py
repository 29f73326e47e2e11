"""Our prompt templates inside a model's own chat format."""

from __future__ import annotations

from typing import Any

from asyncthink.prompts import PromptFormat
from asyncthink.protocol import DEFAULT_PROMPTS

_MARK = "(the organizer's words)"


def prompts_for(tokenizer: Any, saved: PromptFormat | None = None) -> PromptFormat:
    """The templates to use with a model: those saved with it, else the default ones, in its chat format.

    A model without a chat template gets the plain text, after its begin-of-text token where it has one.
    """
    if saved is not None:
        return saved
    if getattr(tokenizer, "chat_template", None):
        return chat_prompts(tokenizer, DEFAULT_PROMPTS)
    begin = _begin(tokenizer)
    p = DEFAULT_PROMPTS
    return PromptFormat(begin + p.organizer, p.worker_shared, begin + p.worker_isolated, begin + p.solo)


def chat_prompts(tokenizer: Any, prompts: PromptFormat) -> PromptFormat:
    """``prompts`` as turns of a conversation that end where the assistant begins to speak.

    A worker with shared context starts in the middle of the organizer's turn, so ``worker_shared`` becomes: the end
    of that turn, a user turn with the instructions, and the beginning of an answer. Thinking of its own is switched
    off where the template knows the switch. Raises ValueError when the template alters or drops a turn.
    """

    def render(*turns: str) -> str:
        roles = ("user", "assistant", "user")
        messages = [{"role": role, "content": turn} for role, turn in zip(roles, turns, strict=False)]
        text: str = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        if turns[-1].strip() not in text:
            raise ValueError(f"chat template: expected it to keep the last turn, got {text!r}")
        return text

    shared = render(prompts.organizer, _MARK, prompts.worker_shared)
    if _MARK not in shared:
        raise ValueError(f"chat template: expected it to keep the assistant's turn, got {shared!r}")
    return PromptFormat(
        organizer=render(prompts.organizer),
        worker_shared=shared.partition(_MARK)[2],
        worker_isolated=render(prompts.worker_isolated),
        solo=render(prompts.solo),
    )


def _begin(tokenizer: Any) -> str:
    """The begin-of-text token, if this tokenizer puts one in front of a text by itself."""
    bos = getattr(tokenizer, "bos_token_id", None)
    return tokenizer.bos_token if bos is not None and tokenizer("x")["input_ids"][:1] == [bos] else ""
