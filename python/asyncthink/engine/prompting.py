"""Questions as the tokens that open an episode, and filled templates. No torch."""

from __future__ import annotations

import functools
from typing import Any

from asyncthink.engine.detokenize import ModelTexts
from asyncthink.episode.modes import opening
from asyncthink.episode.options import AnswerForm, Guide, Options
from asyncthink.protocol.chat import prompts_for, reply_parts
from asyncthink.protocol.codec import Codec
from asyncthink.protocol.messages import Question, turns
from asyncthink.protocol.prompts import ORGANIZE, PLAN, DefaultPrompts, PromptFormat
from asyncthink.protocol.rendering import Schemas


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


def texts_for(codec: Codec, prompts: PromptFormat) -> ModelTexts:
    """What an :class:`asyncthink.episode.core.EpisodeCore` needs of a tokenizer.

    >>> from asyncthink.protocol.prompts import DEFAULT_PROMPTS
    >>> from asyncthink.train.tokenizer import build_tokenizer
    >>> codec = Codec(build_tokenizer())
    >>> codec.decode(texts_for(codec, DEFAULT_PROMPTS).prompt("worker_isolated", "3 + 4"))[-14:]
    '\\n\\nTask: 3 + 4\\n'
    """
    return ModelTexts(codec, functools.partial(encode_template, codec, prompts))


def default_prompts(guide: str) -> DefaultPrompts:
    """The templates of a model without its own: under the guide "plan" they do not speak of tags."""
    return PLAN if guide == Guide.PLAN else ORGANIZE


class Prompter:
    """The prompts of a sampler, some of whose episodes may have other options than its own.

    Args:
        tokenizer: a transformers fast tokenizer, or what has the same names.
        codec: of that tokenizer.
        prompts: the sampler's templates.
        own: whether these are the model's own; else they are default ones, which depend on the guide.
        guide: the sampler's.
        tools: schemas that the prompt of a whole reply declares.
    """

    def __init__(
        self, tokenizer: Any, codec: Codec, prompts: PromptFormat, *, own: bool, guide: str, tools: Schemas = ()
    ) -> None:
        self.prompts, self._tokenizer, self._codec = prompts, tokenizer, codec
        self._own, self._planned, self._tools = own, guide == Guide.PLAN, tools

    def format(self, options: Options) -> PromptFormat:
        """The templates of an episode: the model's own, or the default ones for its guide."""
        if self._own or self._planned == (options.guide == Guide.PLAN):
            return self.prompts
        return self._others

    def texts(self, options: Options) -> ModelTexts:
        """The texts of an episode."""
        return texts_for(self._codec, self.format(options))

    def tokens(self, question: Question, name: str, options: Options) -> list[int]:
        """The tokens that open an episode.

        Raises ValueError, with ``name`` in front, for what cannot be asked so, and for a prompt without tokens.
        """
        turns(question, name)
        try:
            if options.answer != AnswerForm.TEXT:
                return encode_template(self._codec, self.format(options), opening(options), question=question)
            tokens = self._codec.encode(reply_parts(self._tokenizer, question, self._tools))
            if not tokens:
                raise ValueError("expected at least one token, got none")
            return tokens
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None

    @functools.cached_property
    def _others(self) -> PromptFormat:
        """The default templates with the guide "plan", where the sampler has another one, or the other way round."""
        return prompts_for(self._tokenizer, default=ORGANIZE if self._planned else PLAN)
