"""Safetensors files of a model that no process holds whole: read a share at a time, written a layer at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.utils import GENERATION_CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.hub import cached_file

from asyncthink.model.files import load_config
from asyncthink.train.distributed import World
from asyncthink.train.lora import is_adapter, merged_weight, plain_name
from asyncthink.train.sharding import assign, is_sharded, whole

FILE_BYTES = 2**30
"""A file of written weights ends with the layer that exceeds this. Rank 0 holds the tensors of one file."""


@dataclass(frozen=True, slots=True)
class StoredWeights:
    """The tensors in a model's safetensors files: the file and the shape of each name."""

    files: dict[str, str]
    shapes: dict[str, tuple[int, ...]]

    @classmethod
    def find(cls, path: str) -> StoredWeights | None:
        """Those of a folder or hub id; None if it has no safetensors files."""
        index = _file(path, SAFE_WEIGHTS_INDEX_NAME)
        if index is not None:
            entries = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()
        else:
            entries = [SAFE_WEIGHTS_NAME]
        files: dict[str, str] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        for entry in dict.fromkeys(entries):
            file = _file(path, entry)
            if file is None:
                return None
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - it is no dict
                    files[name], shapes[name] = file, tuple(tensors.get_slice(name).get_shape())
        return cls(files, shapes)

    def fit(self, model: PreTrainedModel) -> bool:
        """Whether these are the weights of ``model``, under its names and all in one dtype.

        transformers stores some models under other names and in other shapes (experts one by one).
        """
        wanted = {name: tuple(tensor.shape) for name, tensor in _stored_tensors(model)}
        one_dtype = not (model._keep_in_fp32_modules or model._keep_in_fp32_modules_strict)
        return one_dtype and all(self.shapes.get(name) == shape for name, shape in wanted.items())

    def fill(self, model: PreTrainedModel) -> None:
        """Read this process's rows of every weight but adapters, and compute what is not stored (angles of RoPE).

        ``model`` is on its device; its numbers are not yet set.
        """
        targets = dict(_stored_tensors(model))
        for file in dict.fromkeys(self.files[name] for name in targets):
            with safe_open(file, framework="pt") as tensors:
                for name in (name for name in targets if self.files[name] == file):
                    assign(targets[name], tensors.get_slice(name))
        for tensor in model.state_dict(keep_vars=True).values():
            tensor._is_hf_initialized = True
        model.initialize_weights()  # type: ignore[no-untyped-call]  # transformers leaves out what has the flag


def empty_model(path: str, dtype: torch.dtype) -> PreTrainedModel:
    """The model at ``path`` on the meta device: shapes without memory."""
    config = load_config(path)
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)  # type: ignore[no-untyped-call]
    if _file(path, GENERATION_CONFIG_NAME) is not None:
        model.generation_config = GenerationConfig.from_pretrained(path)
    return model


def write_weights(folder: Path, model: PreTrainedModel, world: World) -> None:
    """Write the weights of a sharded model into files that transformers opens; adapters are merged into them.

    All processes gather one layer after the other, rank 0 writes.
    """
    files: list[list[str]] = []
    pending: dict[str, Tensor] = {}

    def flush() -> None:
        files.append(list(pending))
        save_file(pending, folder / f".part-{len(files)}", metadata={"format": "pt"})
        pending.clear()

    total = 0
    for tensors in _units(model):
        gathered = {name: merged_weight(model, name, whole(tensor)) for name, tensor in tensors.items()}
        if not world.is_main:
            continue
        pending |= {name: t.cpu().contiguous() for name, t in revert_weight_conversion(model, gathered).items()}
        if sum(t.nbytes for t in pending.values()) >= FILE_BYTES:
            total += sum(t.nbytes for t in pending.values())
            flush()
    if not world.is_main:
        return
    if pending:
        total += sum(t.nbytes for t in pending.values())
        flush()
    _name_files(folder, files, total)


def write_config(folder: Path, model: PreTrainedModel) -> None:
    """Write what ``save_pretrained`` of a model that is not sharded writes besides the weights."""
    model.config.dtype = model.dtype
    model.config.architectures = [type(model).__name__.removeprefix("FSDP")]  # fully_shard renames the class
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)


def _name_files(folder: Path, files: list[list[str]], total: int) -> None:
    """Give the parts their final names, and write the index if there are several."""
    count = len(files)
    stem, suffix = SAFE_WEIGHTS_NAME.rsplit(".", 1)
    names = [f"{stem}-{number:05d}-of-{count:05d}.{suffix}" for number in range(1, count + 1)]
    names = [SAFE_WEIGHTS_NAME] if count == 1 else names
    for number, name in enumerate(names, 1):
        (folder / f".part-{number}").rename(folder / name)
    if count > 1:
        places = {tensor: name for name, tensors in zip(names, files, strict=True) for tensor in tensors}
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (folder / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _units(model: PreTrainedModel) -> Iterator[dict[str, Tensor]]:
    """The stored tensors by name: those outside of the layers, then those of each layer."""
    owners = {id(tensor): number for number, tensor in _owners(model)}
    units: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _stored_tensors(model):
        units.setdefault(owners.get(id(tensor), -1), {})[name] = tensor
    return iter(units.values())


def _owners(model: nn.Module) -> Iterator[tuple[int, Tensor]]:
    """(number of the layer, parameter) of all parameters inside of layers."""
    layers = [module for module in model.modules() if is_sharded(module) and module is not model]
    for number, layer in enumerate(layers):
        for parameter in layer.parameters():
            yield number, parameter


def _stored_tensors(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """(name in the files, tensor) of parameters and stored buffers, tied ones once, without adapters."""
    stored = model.state_dict(keep_vars=True)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name in stored and not is_adapter(name):
            yield plain_name(name), tensor


def _file(path: str, name: str) -> str | None:
    file: str | None = cached_file(path, name, _raise_exceptions_for_missing_entries=False)
    return file
