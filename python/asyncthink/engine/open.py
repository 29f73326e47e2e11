"""A sampler's model (a path, a live module or a Decoder) as a Decoder with its tokenizer and prompts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from asyncthink.engine.saved_prompts import saved_prompts
from asyncthink.model.choice import DECODERS, ModelSource, decoder_for, load_decoder
from asyncthink.model.contract import BranchDecoder
from asyncthink.model.files import load_tokenizer
from asyncthink.protocol.chat import prompts_for
from asyncthink.protocol.prompts import FILE_NAME, ORGANIZE, DefaultPrompts, PromptFormat


class Opened(NamedTuple):
    """What a sampler runs on; ``source`` is the origin of the prompts."""

    decoder: BranchDecoder
    tokenizer: Any
    prompts: PromptFormat
    source: str


def open_model(
    model: ModelSource,
    tokenizer: Any,
    prompts: PromptFormat | None,
    *,
    sizes: dict[str, Any],
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    progress: Callable[[str], None] | None = None,
    default: DefaultPrompts = ORGANIZE,
) -> Opened:
    """A decoder, its tokenizer and its prompts; ``sizes`` are arguments of :func:`asyncthink.model.choice.decoder_for`,
    None where not given.

    The prompts are ``prompts``, else those of the model's ``asyncthink.json``, else ``default`` in the tokenizer's
    chat template, or plain if it has none.

    Raises:
        ValueError: a model or tokenizer that cannot be loaded; arguments without effect: a Decoder has its own sizes,
            and a live model keeps its dtype and device.
    """
    given = {name: value for name, value in sizes.items() if value is not None}
    source: dict[str, Any] = {"device": device, "dtype": dtype, "revision": revision}
    fixed = {name: value for name, value in source.items() if value not in ("auto", None)}
    if isinstance(model, (nn.Module, *DECODERS)) and tokenizer is None:
        raise ValueError("tokenizer: expected the model's tokenizer beside a live module, got None")
    saved: PromptFormat | None = None
    if isinstance(model, DECODERS):
        _refuse(given | fixed, "a Decoder, which has its own")
        decoder: BranchDecoder = model
    elif isinstance(model, nn.Module):
        _refuse(fixed, "a live model, which stays as it is where it lies")
        decoder = decoder_for(model, progress=progress, **given)
    elif not isinstance(model, (str, Path)):
        raise ValueError(f"model: expected a path, a live module or a decoder, got {type(model).__name__}")
    else:  # the weights come last, because they may take minutes
        tokenizer = tokenizer if tokenizer is not None else load_tokenizer(model, revision)
        saved = saved_prompts(model, revision) if prompts is None else None
        decoder = load_decoder(model, **source, progress=progress, **given)
    if prompts is not None:
        return Opened(decoder, tokenizer, prompts, "given")
    return Opened(decoder, tokenizer, prompts_for(tokenizer, saved, default), _source(tokenizer, saved))


def stop_ids(model: nn.Module) -> list[int]:
    """The token ids at which the model's ``generation_config`` ends a text."""
    config = getattr(model, "generation_config", None)
    ids = getattr(config, "eos_token_id", None)
    return [] if ids is None else [ids] if isinstance(ids, int) else list(ids)


def _refuse(given: dict[str, Any], model: str) -> None:
    if given:
        values = ", ".join(f"{name}={value!r}" for name, value in given.items())
        raise ValueError(f"{', '.join(given)}: expected none beside {model}, got {values}")


def _source(tokenizer: Any, saved: PromptFormat | None) -> str:
    if saved is not None:
        return FILE_NAME
    return "default, " + ("in the model's chat template" if getattr(tokenizer, "chat_template", None) else "plain")
