"""The best weights of a run by its validation: ``out/best-N``, from step N."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from asyncthink.protocol.prompts import FILE_NAME, PromptFormat
from asyncthink.train.checkpoint import numbered, remove, save_folder
from asyncthink.train.distributed import ALONE, World

PREFIX = "best-"


def best(out: Path) -> Path | None:
    """The folder of the best weights of a run so far; None without a validation."""
    folders = numbered(out, PREFIX)
    return folders[-1] if folders else None


def best_figures(out: Path) -> dict[str, float] | None:
    """The validation of the best weights, and the ``step`` they are from."""
    folder = best(out)
    if folder is None:
        return None
    figures: dict[str, float] = json.loads((folder / FILE_NAME).read_text(encoding="utf-8"))["validation"]
    return figures


def save_best(
    out: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: PromptFormat,
    settings: dict[str, Any],
    step: int,
    world: World = ALONE,
) -> Path:
    """Write ``out/best-N``, which appears whole, and then remove those before it.

    ``settings["validation"]`` are the figures. Raises ValueError for weights that are not finite.
    """
    folder = save_folder(out / f"{PREFIX}{step:06d}", model, tokenizer, prompts, settings, world)
    if world.is_main:
        for older in numbered(out, PREFIX)[:-1]:
            remove(older)
    world.barrier()
    return folder
