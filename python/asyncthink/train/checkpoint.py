"""Files of a training run: model folders that transformers opens, and training state for an exact resume.

Every file or folder is written under a temporary name and renamed. A reader never sees an incomplete one, and a process
killed at any moment leaves at least one complete checkpoint if it had written any.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from asyncthink.protocol.prompts import PromptFormat
from asyncthink.train.lora import FOLDER, has_lora, merged, save_adapter
from asyncthink.train.steps import LeftOut, check_finite

STATE_TENSORS = "training_state.safetensors"
STATE_NUMBERS = "training_state.json"


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of a run: steps done, training tokens seen, seconds spent, optimizer steps that changed no weight."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    left_out: LeftOut = field(default_factory=LeftOut)


def save_model(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: PromptFormat,
    settings: dict[str, Any],
) -> None:
    """Write a folder that transformers and the sampler open; an existing one is replaced file by file.

    Adapters are merged into the weights, and also written separately to ``folder/adapter``. ``settings`` are further
    entries of ``asyncthink.json`` beside the prompts (task, suggested sampling). Raises ValueError, before any file is
    changed, if a weight is not finite.
    """
    check_finite("weights", model.named_parameters())
    draft = _draft(folder)
    try:
        _write_model(draft, model, tokenizer, prompts, settings)
        for file in sorted(path for path in draft.rglob("*") if path.is_file()):
            target = folder / file.relative_to(draft)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _write_model(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: PromptFormat,
    settings: dict[str, Any],
) -> None:
    closing = [tokenizer.encode(tag, add_special_tokens=False) for tag in ("</ANSWER>", "</RETURN>")]
    known = getattr(model.generation_config, "eos_token_id", None)
    known = [] if known is None else [known] if isinstance(known, int) else known
    ends = dict.fromkeys([tokenizer.eos_token_id, *known, *(tag[0] for tag in closing if len(tag) == 1)])
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        eos_token_id=list(ends), pad_token_id=tokenizer.pad_token_id
    )
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    model.save_pretrained(folder, state_dict=merged(model) if has_lora(model) else None)
    if has_lora(model):
        save_adapter(folder / FOLDER, model)
    tokenizer.save_pretrained(folder)
    (folder / "asyncthink.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    prompts.save(folder)
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(0o644)  # safetensors makes its files private


def save_state(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
    """Write what a resume needs besides the weights into a checkpoint folder: moments, random state, progress."""
    tensors = moments(model, optimizer)
    tensors["random"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random_cuda"] = torch.cuda.get_rng_state()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / STATE_TENSORS)
    (folder / STATE_NUMBERS).write_text(json.dumps(asdict(progress)) + "\n", encoding="utf-8")


def moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimizer's state of each trainable parameter, under ``KIND.NAME OF THE PARAMETER``."""
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    state = optimizer.state_dict()["state"]
    return {f"{key}.{names[index]}": value for index, entry in state.items() for key, value in entry.items()}


def load_state(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
    """Restore what :func:`save_state` wrote; the weights are already loaded. Raises ValueError if it is missing."""
    if not (folder / STATE_TENSORS).exists():
        raise ValueError(f"resume: {folder} holds no training state")
    tensors = load_file(folder / STATE_TENSORS)
    torch.set_rng_state(tensors.pop("random"))
    cuda = tensors.pop("random_cuda", None)
    if cuda is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(cuda)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        key, _, parameter = name.partition(".")
        state.setdefault(names.index(parameter), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    numbers = json.loads((folder / STATE_NUMBERS).read_text(encoding="utf-8"))
    left_out = LeftOut(**numbers.pop("left_out", {}))  # a checkpoint of an earlier version has none
    return Progress(**numbers, left_out=left_out)


def save_checkpoint(
    out: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: PromptFormat,
    settings: dict[str, Any],
    optimizer: torch.optim.Optimizer,
    progress: Progress,
) -> Path:
    """Write ``out/step-N`` and remove all older checkpoints but the newest.

    The new folder appears last, so a run whose last checkpoint exists is complete. Raises ValueError, before any file
    is changed, if a weight or a moment is not finite.
    """
    check_finite("weights", model.named_parameters())
    check_finite("moments", moments(model, optimizer).items())
    folder = out / f"step-{progress.step:06d}"
    draft = _draft(folder)
    try:
        _write_model(draft, model, tokenizer, prompts, settings)
        save_state(draft, model, optimizer, progress)
        for older in checkpoints(out)[:-1]:
            remove(older)
        os.replace(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def save_folder(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: PromptFormat,
    settings: dict[str, Any],
) -> Path:
    """As :func:`save_model`, but the folder appears whole; an existing one is replaced."""
    check_finite("weights", model.named_parameters())
    draft = _draft(folder)
    try:
        _write_model(draft, model, tokenizer, prompts, settings)
        if folder.exists():
            remove(folder)
        os.replace(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
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


def _draft(folder: Path) -> Path:
    draft = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    return draft
