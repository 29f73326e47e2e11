"""Low-rank adapters (LoRA, arXiv 2106.09685) from peft, injected into a model in place.

The model stays an ordinary transformers decoder: trainer and sampler use it like any other, with the adapters active.
``W x`` becomes ``W x + (alpha / rank) B A x``; A and B are float32, W is frozen.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from asyncthink.train.sharding import assign, whole

FOLDER = "adapter"  # inside a checkpoint; peft loads it onto the model that the training started from
_NAME = "default"
_WEIGHTS = "adapter_model.safetensors"


def add_lora(model: PreTrainedModel, rank: int, alpha: int, targets: str, seed: int) -> None:
    """Freeze ``model`` and add trainable adapters to its linear layers: A random by ``seed``, B zero.

    On the meta device the adapters have no numbers before :func:`reset_adapters`.

    ``targets``: "all-linear" (all but the output head), or the names of modules, separated by commas. Raises
    ImportError without peft. Raises ValueError if no module has such a name, if one is not linear, and for an output
    head that is tied to the input embedding: merging its adapter would change both.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.lora import Linear, LoraLayer
    except ImportError as error:
        raise ImportError('LoRA needs peft: pip install "asyncthink-kernels[train]"') from error
    chosen: str | list[str] = targets if targets == "all-linear" else [name.strip() for name in targets.split(",")]
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=chosen,
        lora_dropout=0.0,  # the sampler's log-probabilities are the trainer's only without dropout
        task_type="CAUSAL_LM",
        base_model_name_or_path=model.config.name_or_path,
    )
    try:
        inject_adapter_in_model(config, model, _NAME)
    except ValueError as error:
        raise ValueError(f"lora targets: {str(error).splitlines()[0]}") from None
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer) and not isinstance(module, Linear):
            raise ValueError(f"lora targets: expected linear layers, got {name}, {type(module).__name__}")
    decoder: Any = model
    if model.config.tie_word_embeddings and isinstance(decoder.get_output_embeddings(), LoraLayer):
        raise ValueError("lora targets: expected an output head of its own, got one tied to the input embedding")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_adapter(name))
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # updates are smaller than bfloat16 can represent
    if model.device.type != "meta":
        reset_adapters(model, seed)


@torch.no_grad()
def reset_adapters(model: PreTrainedModel, seed: int) -> None:
    """Set A to random numbers and B to zero, as peft does; each A is a function of ``seed`` and its name.

    So a process that holds some rows of it has the same numbers as one that holds all.
    """
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.zero_()
        elif is_adapter(name):
            rank_rows, inputs = parameter.shape
            digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
            numbers = torch.empty(rank_rows, inputs).uniform_(-(inputs**-0.5), inputs**-0.5, generator=generator)
            assign(parameter, numbers)


def has_lora(model: PreTrainedModel) -> bool:
    return hasattr(model, "peft_config")


def save_adapter(folder: Path, model: PreTrainedModel, write: bool = True) -> None:
    """Write the adapters of :func:`add_lora` in peft's layout.

    Of a model on several processes all must call this, and one of them ``write``.
    """
    tensors = {_public(name): whole(tensor).contiguous() for name, tensor in _adapters(model).items()}
    if write:
        folder.mkdir(parents=True)
        model.peft_config[_NAME].save_pretrained(str(folder))
        save_file(tensors, folder / _WEIGHTS, metadata={"format": "pt"})


def load_adapter(folder: Path, model: PreTrainedModel) -> None:
    """Load the adapters of a checkpoint into those of :func:`add_lora`. Raises ValueError if they do not match."""
    if not (folder / _WEIGHTS).is_file():
        raise ValueError(f"lora: {folder} holds no adapter; the run did not train one")
    tensors, own = load_file(folder / _WEIGHTS), _adapters(model)
    expected = {_public(name): tuple(tensor.shape) for name, tensor in own.items()}
    if expected != {name: tuple(tensor.shape) for name, tensor in tensors.items()}:
        raise ValueError(f"lora: expected the rank and targets of the adapter in {folder}, got others")
    for name, tensor in own.items():
        assign(tensor, tensors[_public(name)])


def merged(model: PreTrainedModel) -> dict[str, Tensor]:
    """The weights with the adapters merged in, under the names they have without adapters.

    The model is not changed: merging in place and undoing it would change the last bits of its weights.
    """
    return {
        plain_name(name): merged_weight(model, plain_name(name), tensor)
        for name, tensor in model.state_dict().items()
        if not is_adapter(name)
    }


@torch.no_grad()
def merged_weight(model: PreTrainedModel, name: str, weight: Tensor) -> Tensor:
    """All rows of a weight plus its adapter, if it has one; ``name`` is the one that it has without adapters.

    Of a model on several processes all must call this.
    """
    module_name, _, kind = name.rpartition(".")
    if not has_lora(model) or kind != "weight":
        return weight
    from peft.tuners.lora import Linear

    module = model.get_submodule(module_name)
    if not isinstance(module, Linear):
        return weight
    merged_rows = weight.float() + whole(module.get_delta_weight(_NAME)).float()
    return merged_rows.to(weight.dtype).cpu()  # two copies may not fit on the GPU


def _adapters(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if is_adapter(name)}


def is_adapter(name: str) -> bool:
    """Whether a parameter of that name belongs to an adapter."""
    return ".lora_" in name


def plain_name(name: str) -> str:
    """The name that a weight has without adapters.

    >>> plain_name("model.layers.0.mlp.up_proj.base_layer.weight")
    'model.layers.0.mlp.up_proj.weight'
    """
    return name.replace(".base_layer.", ".")


def _public(name: str) -> str:
    return "base_model.model." + name.replace(f".{_NAME}.", ".")
