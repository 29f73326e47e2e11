"""The parts of a :class:`asyncthink.engine.sampler.ForkJoinSampler`: a model opened, and what works on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from asyncthink.engine.guided import GuidedLogits
from asyncthink.engine.local import LocalEngine
from asyncthink.engine.open import open_model, stop_ids
from asyncthink.engine.prefix_cache import PrefixCache
from asyncthink.engine.prompting import Prompter, default_prompts
from asyncthink.engine.request_maker import RequestMaker
from asyncthink.engine.rows import Draw
from asyncthink.engine.tools import Tool, Toolbox, declared
from asyncthink.episode.options import AnswerForm, Options
from asyncthink.model.choice import ModelSource
from asyncthink.model.contract import BranchDecoder
from asyncthink.protocol.codec import Codec
from asyncthink.protocol.prompts import PromptFormat


@dataclass(frozen=True, slots=True)
class Assembly:
    """What a sampler consists of.

    ``prompts`` are its templates, in which ``toolbox`` is declared; ``own_prompts`` are given or saved with the model,
    None where they are default ones; ``prompts_from`` says in words where they come from.
    """

    decoder: BranchDecoder
    tokenizer: Any
    codec: Codec
    prompts: PromptFormat
    own_prompts: PromptFormat | None
    prompts_from: str
    toolbox: Toolbox | None
    prefixes: PrefixCache
    maker: RequestMaker
    engine: LocalEngine


def assemble(
    model: ModelSource,
    tokenizer: Any,
    prompts: PromptFormat | None,
    options: Options,
    tools: Sequence[Callable[..., Any] | Tool],
    draw: Draw,
    *,
    max_rows: int,
    max_episodes: int,
    prefix_pages: int | None,
    **source: Any,
) -> Assembly:
    """Open the model and make a sampler's parts.

    ``draw`` draws the tokens; ``source`` are other arguments of :func:`asyncthink.engine.open.open_model`.
    ValueError for a model that cannot be loaded or served, and options that it or its templates do not support.
    """
    opened = open_model(model, tokenizer, prompts, default=default_prompts(options.guide), **source)
    decoder, tokenizer, prompts, prompts_from = opened
    own = None if prompts_from.startswith("default") else prompts
    codec = Codec(tokenizer, stop_ids(decoder.model))
    toolbox = Toolbox.of(tools, tokenizer, codec, thinks=options.answer == AnswerForm.TEXT)
    if toolbox and options.answer == AnswerForm.TAGS:
        prompts = declared(prompts, toolbox.schemas)
    schemas = toolbox.schemas if toolbox else ()
    prompter = Prompter(tokenizer, codec, prompts, own=own is not None, guide=options.guide, tools=schemas)
    prefixes = PrefixCache(prompts, codec, decoder, prefix_pages)
    maker = RequestMaker(options, decoder, prompter, codec, prefixes, toolbox)
    engine = LocalEngine(decoder, prefixes, GuidedLogits(codec), draw, max_rows=max_rows, max_episodes=max_episodes)
    return Assembly(decoder, tokenizer, codec, prompts, own, prompts_from, toolbox, prefixes, maker, engine)
