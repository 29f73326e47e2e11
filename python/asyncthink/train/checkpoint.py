"""Files of a training run: model folders that transformers opens, and training state for an exact resume.

Every file or folder is written under a temporary name and renamed. A reader never sees an incomplete one, and a process
killed at any moment leaves at least one complete checkpoint if it had written any. Of a run on several processes all
call these functions; their folders must be one place for all.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from asyncthink.protocol.prompts import PromptFormat
from asyncthink.train.distributed import ALONE, World
from asyncthink.train.lora import FOLDER, has_lora, merged, save_adapter
from asyncthink.train.sharding import is_sharded
from asyncthink.train.state import Progress, moments, save_state
from asyncthink.train.steps import check_finite
from asyncthink.train.stored_weights import write_config, write_weights


def save_model(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: PromptFormat,
    settings: dict[str, Any],
    world: World = ALONE,
) -> None:
    """Write a folder that transformers and the sampler open; an existing one is replaced file by file.

    Adapters are merged into the weights, and also written separately to ``folder/adapter``. ``settings`` are further
    entries of ``asyncthink.json`` beside the prompts (task, suggested sampling). Raises ValueError, before any file is
    changed, if a weight is not finite.
    """
    check_finite("weights", model.named_parameters(), world)
    draft = _draft(folder, world)
    try:
        _write_model(draft, model, tokenizer, prompts, settings, world)
        if world.is_main:
            _replace_files(folder, draft)
    finally:
        _discard(draft, world)


def _replace_files(folder: Path, draft: Path) -> None:
    """Move the files of ``draft`` into ``folder``; weights there that have no successor are removed."""
    files = sorted(path.relative_to(draft) for path in draft.rglob("*") if path.is_file())
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        os.replace(draft / file, folder / file)
    for weights in folder.glob("model*.safetensors*"):
        if weights.relative_to(folder) not in files:
            weights.unlink()


def _write_model(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: PromptFormat,
    settings: dict[str, Any],
    world: World,
) -> None:
    if is_sharded(model):
        write_weights(folder, model, world)
    if has_lora(model):
        save_adapter(folder / FOLDER, model, world.is_main)
    if not world.is_main:
        return
    closing = [tokenizer.encode(tag, add_special_tokens=False) for tag in ("</ANSWER>", "</RETURN>")]
    known = getattr(model.generation_config, "eos_token_id", None)
    known = [] if known is None else [known] if isinstance(known, int) else known
    ends = dict.fromkeys([tokenizer.eos_token_id, *known, *(tag[0] for tag in closing if len(tag) == 1)])
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        eos_token_id=list(ends), pad_token_id=tokenizer.pad_token_id
    )
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    if is_sharded(model):
        write_config(folder, model)
    else:
        model.save_pretrained(folder, state_dict=merged(model) if has_lora(model) else None)
    tokenizer.save_pretrained(folder)
    (folder / "asyncthink.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    prompts.save(folder)
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(0o644)  # safetensors makes its files private


def save_checkpoint(
    out: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: PromptFormat,
    settings: dict[str, Any],
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    world: World = ALONE,
) -> Path:
    """Write ``out/step-N`` and remove all older checkpoints but the newest.

    The new folder appears last, so a run whose last checkpoint exists is complete. Raises ValueError, before any file
    is changed, if a weight or a moment is not finite.
    """
    check_finite("weights", model.named_parameters(), world)
    check_finite("moments", moments(model, optimizer).items(), world)
    folder = out / f"step-{progress.step:06d}"
    draft = _draft(folder, world)
    try:
        _write_model(draft, model, tokenizer, prompts, settings, world)
        save_state(draft, model, optimizer, progress, world)
        world.barrier()  # rank 0 renames the folder after every process has written its share
        if world.is_main:
            for older in checkpoints(out)[:-1]:
                remove(older)
            os.replace(draft, folder)
        world.barrier()
    finally:
        _discard(draft, world)
    return folder


def save_folder(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: PromptFormat,
    settings: dict[str, Any],
    world: World = ALONE,
) -> Path:
    """As :func:`save_model`, but the folder appears whole; an existing one is replaced."""
    check_finite("weights", model.named_parameters(), world)
    draft = _draft(folder, world)
    try:
        _write_model(draft, model, tokenizer, prompts, settings, world)
        world.barrier()
        if world.is_main:
            if folder.exists():
                remove(folder)
            os.replace(draft, folder)
        world.barrier()
    finally:
        _discard(draft, world)
    return folder


def checkpoints(out: Path) -> list[Path]:
    """The checkpoint folders of a run, oldest first."""
    return numbered(out, "step-")


def numbered(out: Path, prefix: str) -> list[Path]:
    """The folders ``PREFIX`` + number in ``out``, by their numbers."""
    folders = [folder for folder in out.glob(f"{prefix}*") if folder.name.removeprefix(prefix).isdigit()]
    return sorted(folders, key=lambda folder: int(folder.name.removeprefix(prefix)))


def remove_leftovers(out: Path) -> None:
    """Remove the incomplete checkpoints and files that killed processes left behind."""
    for pattern in (".step-*.part", ".step-*.gone", ".best-*.part", ".best-*.gone"):
        for folder in out.glob(pattern):
            shutil.rmtree(folder)
    for file in out.glob("*.part"):
        file.unlink()


def remove(folder: Path) -> None:
    """Remove a checkpoint by renaming it first, so that no reader sees an incomplete one."""
    gone = folder.with_name(f".{folder.name}.gone")
    os.replace(folder, gone)
    shutil.rmtree(gone)


def _draft(folder: Path, world: World) -> Path:
    draft = folder.with_name(f".{folder.name}.part")
    if world.is_main:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
    world.barrier()
    return draft


def _discard(draft: Path, world: World) -> None:
    if world.is_main:
        shutil.rmtree(draft, ignore_errors=True)
