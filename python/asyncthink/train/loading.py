"""The model to train: random weights or any transformers decoder; all of its weights or LoRA adapters."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import nn
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from asyncthink.engine.requests import check_templates
from asyncthink.engine.saved_prompts import saved_prompts
from asyncthink.episode.options import Options
from asyncthink.model.auto_dtype import choose_dtype
from asyncthink.model.files import device_for, load_tokenizer, open_weights
from asyncthink.protocol.chat import prompts_for
from asyncthink.protocol.prompts import PromptFormat
from asyncthink.train.backward_products import BFloat16Backward
from asyncthink.train.distributed import ALONE, World
from asyncthink.train.lora import FOLDER, add_lora, load_adapter, reset_adapters
from asyncthink.train.sharding import is_sharded, shard
from asyncthink.train.stored_weights import StoredWeights, empty_model
from asyncthink.train.tag_tokens import add_tag_tokens
from asyncthink.train.tokenizer import build_tokenizer

#: Prompts of a model trained from random weights: the role is one token, or two for a worker that may fork.
TINY_PROMPTS = PromptFormat(
    "<organizer>{question}\n",
    "<worker>\n",
    "<worker>{subquery}\n",
    "<solo>{question}\n",
    forking_worker_shared="<worker><organizer>\n",
    forking_worker_isolated="<worker><organizer>{subquery}\n",
)
WEIGHTS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Shape:
    """The shape of a Qwen3 decoder with random weights."""

    layers: int = 4
    hidden: int = 128
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    intermediate: int = 384

    @classmethod
    def parse(cls, text: str) -> Shape:
        """The shape whose numbers stand in a text, in the order of the fields. Raises ValueError for another text.

        >>> Shape.parse("4,128,4,2,32,384") == Shape()
        True
        """
        sizes = [int(word) for word in text.split(",") if word.strip().isdigit()]
        if len(sizes) != len(dataclasses.fields(cls)) or len(sizes) != len(text.split(",")) or min(sizes) < 1:
            names = ",".join(field.name for field in dataclasses.fields(cls)).upper()
            raise ValueError(f"shape: expected {names}, got {text!r}")
        return cls(*sizes)


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """The model to train, and its dtypes.

    Args:
        model: a folder or hub id; None: random weights of ``shape``, by ``seed``, with the number-level tokenizer.
        bfloat16: multiply matrices in bfloat16 (autocast); everything else stays in the weights' dtype. "auto": if
            that is faster on this machine (:func:`asyncthink.model.auto_dtype.choose_dtype`).
        bfloat16_backward: multiply matrices of the backward pass alone in bfloat16 (:mod:`.backward_products`), which
            leaves every loss bitwise as it is.
        weights: dtype of the stored weights. "bfloat16" halves weights, gradients and moments, but loses updates
            smaller than 1/256 of a weight. It is meant for LoRA, whose adapters are always float32.
        lora: rank of the adapters; 0 trains all weights. ``lora_alpha``: None means twice the rank. ``lora_targets``:
            "all-linear" or module names, separated by commas.
        checkpointing: keep only each layer's input for the backward pass and recompute the rest.
        tag_tokens: add the protocol's tags to the tokenizer, and a row for each to the model (:mod:`.tag_tokens`).
        device: "auto" (this process's GPU if there is one, else the CPU), "cpu" or "cuda".

    Raises ValueError for a negative rank, an alpha that is not positive, an unknown dtype or an unknown ``bfloat16``.
    """

    model: str | None = None
    shape: Shape = field(default_factory=Shape)
    seed: int = 0
    bfloat16: bool | Literal["auto"] = "auto"
    bfloat16_backward: bool = False
    weights: str = "float32"
    lora: int = 0
    lora_alpha: int | None = None
    lora_targets: str = "all-linear"
    checkpointing: bool = False
    tag_tokens: bool = False
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.weights not in WEIGHTS:
            raise ValueError(f"weights: expected one of {', '.join(WEIGHTS)}, got {self.weights!r}")
        if not isinstance(self.bfloat16, bool) and self.bfloat16 != "auto":
            raise ValueError(f"bfloat16: expected True, False or 'auto', got {self.bfloat16!r}")
        if self.lora < 0:
            raise ValueError(f"lora: expected a rank of at least 0, got {self.lora}")
        if self.lora_alpha is not None and self.lora_alpha < 1:
            raise ValueError(f"lora_alpha: expected at least 1, got {self.lora_alpha}")


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model on its device, with its tokenizer and prompts."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    prompts: PromptFormat
    device: torch.device
    bfloat16: bool
    bfloat16_backward: bool = False

    def for_depth(self, depth: int, contexts: Iterable[str]) -> Loaded:
        """With the prompts of a run with ``depth`` levels of workers in these contexts; its checkpoints get them.

        Raises ValueError if a template is missing.
        """
        for context in contexts:
            check_templates(self.prompts, Options(context=context, depth=depth))
        return dataclasses.replace(self, prompts=self.prompts.for_depth(depth))

    def autocast(self) -> AbstractContextManager[object]:
        """The context in which the model computes: autocast to bfloat16, or disabled."""
        cache = not is_sharded(self.model)  # it would keep a copy of every layer's whole weights
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16, cache_enabled=cache)

    def backward_products(self) -> AbstractContextManager[object]:
        """The context of a forward pass and its backward pass."""
        return BFloat16Backward() if self.bfloat16_backward else nullcontext()


def bfloat16_for(options: ModelOptions) -> tuple[bool, str]:
    """Whether "auto" means bfloat16 products for this model on this machine, and the reason in one sentence."""
    choice = choose_dtype(device_for(options.device), WEIGHTS[options.weights], use="training")
    return choice.dtype is torch.bfloat16, choice.why


def load(options: ModelOptions, resume: Path | None = None, world: World = ALONE) -> Loaded:
    """The model of ``options``, with the weights of the checkpoint folder ``resume`` if it is given.

    Several processes call this together and divide the model (:mod:`.sharding`). Each reads its own rows alone where
    the files hold the weights as the model does; other models, and random weights, are whole in every process first.

    Raises ValueError if the model cannot be loaded, ImportError if LoRA is requested without peft.
    """
    device = device_for(options.device)
    adapted = options.lora > 0  # adapters are added to the model before the training, also on a resume
    path = options.model if resume is None or adapted else str(resume)
    by_rows = path is not None and world.size > 1 and not options.tag_tokens  # new rows are made of whole ones
    stored = StoredWeights.find(path) if path is not None and by_rows else None
    model, tokenizer, prompts = _open(options, path, stored)
    if adapted:
        alpha = 2 * options.lora if options.lora_alpha is None else options.lora_alpha
        add_lora(model, options.lora, alpha, options.lora_targets, options.seed)
    elif resume is not None and (resume / FOLDER).exists():
        raise ValueError(f"lora: {resume} was trained with adapters; resume it with the same rank")
    if options.checkpointing:
        old, new = "gradient_checkpointing_enable", "activation_checkpointing_enable"  # renamed in transformers 5
        getattr(model, new if hasattr(model, new) else old)({"use_reentrant": False})
    if world.size > 1:
        shard(model, world, device)
    if stored is not None and model.device.type == "meta":
        model.to_empty(device=device)
        stored.fill(model)
        if adapted:
            reset_adapters(model, options.seed)
    model.to(device)  # type: ignore[arg-type]
    if adapted and resume is not None:
        load_adapter(resume / FOLDER, model)
    bfloat16 = bfloat16_for(options)[0] if options.bfloat16 == "auto" else options.bfloat16
    return Loaded(model.train(), tokenizer, prompts, device, bfloat16, options.bfloat16_backward)


def _open(
    options: ModelOptions, path: str | None, stored: StoredWeights | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, PromptFormat]:
    """The model, on the meta device if ``stored`` are its weights."""
    dtype = WEIGHTS[options.weights]
    if path is None:
        number_tokenizer = build_tokenizer()
        untrained = random_model(options.shape, number_tokenizer, options.seed)
        for parameter in untrained.parameters():  # not buffers: RoPE's angles stay float32, as in a loaded model
            parameter.data = parameter.data.to(dtype)
        return untrained, number_tokenizer, TINY_PROMPTS
    try:
        model = empty_model(path, dtype) if stored is not None else None
        if model is None or stored is None or not stored.fit(model):
            model = open_weights(path, dtype)
        tokenizer = load_tokenizer(path)
        if options.tag_tokens:
            add_tag_tokens(model, tokenizer)
        return model, tokenizer, prompts_for(tokenizer, saved_prompts(path))
    except ValueError as error:
        raise ValueError(f"model: {error}") from error


def random_model(shape: Shape, tokenizer: PreTrainedTokenizerBase, seed: int) -> Qwen3ForCausalLM:
    """A Qwen3 decoder with tied embeddings and seeded random weights, float32."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        num_hidden_layers=shape.layers,
        hidden_size=shape.hidden,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        intermediate_size=shape.intermediate,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        dtype=torch.float32,
    )
    return Qwen3ForCausalLM(config)


def optimizer(
    model: nn.Module, learning_rate: float, weight_decay: float, betas: tuple[float, float] = (0.9, 0.95)
) -> torch.optim.AdamW:
    """AdamW over the trainable parameters."""
    trainable: Iterable[nn.Parameter] = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trainable, lr=learning_rate, betas=betas, weight_decay=weight_decay, fused=True)
