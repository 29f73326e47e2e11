"""An estimate of a training step's memory from the model's configuration, without loading the model.

Weights, gradients and moments are counted on torch's meta device. So are activations: one layer runs there, and the
tensors that autograd keeps are added up. Nothing is measured on a GPU: fragmentation and kernel scratch are not
included.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig

from asyncthink.model.registry import configs_of, patched, register
from asyncthink.train.loading import WEIGHTS, ModelOptions
from asyncthink.train.logprobs import CHUNK
from asyncthink.train.lora import add_lora
from asyncthink.train.sharding import decoder_layers

_COUNTED = "asyncthink_counted"


def estimate(
    config: PreTrainedConfig, options: ModelOptions, batch_tokens: int, cache_tokens: int = 0, processes: int = 1
) -> dict[str, int]:
    """Bytes of a training step of a model with ``config``, by purpose, in each of ``processes`` processes.

    * "weights", "gradients", "moments": AdamW keeps two moments of each trainable weight.
    * "activations": of one packed batch of ``batch_tokens`` tokens without autocast, which can only make them smaller.
    * "logits": one chunk of them with its gradient.
    * "cache": the sampler's K/V of ``cache_tokens`` tokens (GRPO).
    * "total": the sum.

    With several processes weights, gradients and moments are those of the process with the most rows
    (:mod:`.sharding`), and there are two more:

    * "gathered": whole weights during a pass, of two layers (one computes, the next one comes) and of what is outside
      of layers, and the whole gradients of one layer and of what is outside.
    * "copy": the whole weights that the sampler decodes with; 0 without ``cache_tokens``.

    Raises ImportError if ``options`` request LoRA without peft; ValueError for fewer than 1 process, and for several
    and a model without decoder layers that could be gathered one at a time.

    >>> from transformers import Qwen3Config
    >>> small = Qwen3Config(num_hidden_layers=2, hidden_size=64, num_attention_heads=4, num_key_value_heads=2,
    ...                     head_dim=16, intermediate_size=128, vocab_size=1000, tie_word_embeddings=True)
    >>> estimate(small, ModelOptions(), batch_tokens=1000)["weights"] == 4 * (1000 * 64 + 2 * (36864 + 160) + 64)
    True
    """
    if processes < 1:
        raise ValueError(f"processes: expected at least 1, got {processes}")
    dtype = WEIGHTS[options.weights]
    model = _on_meta(config, options, layers=None)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    layers = int(config.get_text_config().num_hidden_layers)
    one_layer, two_layers = (_saved(config, options, count, batch_tokens) for count in (1, 2))
    layer, outside = two_layers - one_layer, 2 * one_layer - two_layers
    if options.checkpointing:  # the input of each layer, and everything of the layer that is being recomputed
        inputs = layers * batch_tokens * int(config.get_text_config().hidden_size) * dtype.itemsize
        activations = outside + inputs + layer
    else:
        activations = outside + layers * layer
    sizes = {
        "weights": _bytes(model.parameters(), processes),
        "gradients": _bytes(trainable, processes),
        "moments": 2 * _bytes(trainable, processes),
        "activations": activations,
        "logits": 4 * CHUNK * torch.float32.itemsize,
        "cache": cache_tokens * _token_bytes(config, dtype),
    }
    if processes > 1:
        copied = _bytes(model.parameters()) if cache_tokens else 0
        sizes |= {"gathered": _gathered(model), "copy": copied}
    return sizes | {"total": sum(sizes.values())}


def _bytes(tensors: Any, processes: int = 1) -> int:
    """Bytes of tensors, or of the first of the shares of their rows."""
    return sum(
        tensor.numel() * tensor.element_size() if processes == 1 else -(-len(tensor) // processes) * tensor[0].nbytes
        for tensor in tensors
    )


def _gathered(model: nn.Module) -> int:
    """Bytes that are whole while a sharded model computes."""
    layers = decoder_layers(model)
    inside = {id(parameter) for layer in layers for parameter in layer.parameters()}
    outside = [parameter for parameter in model.parameters() if id(parameter) not in inside]
    largest = max(layers, key=lambda layer: _bytes(layer.parameters()))
    learned = [each for each in (*largest.parameters(), *outside) if each.requires_grad]
    return 2 * _bytes(largest.parameters()) + _bytes(outside) + _bytes(learned)


def _token_bytes(config: PreTrainedConfig, dtype: torch.dtype) -> int:
    text = config.get_text_config()
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    kv_heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    return int(2 * text.num_hidden_layers * kv_heads * head_dim * dtype.itemsize)


def _on_meta(config: PreTrainedConfig, options: ModelOptions, layers: int | None) -> Any:
    """A model on the meta device: shapes without memory. ``layers`` keeps only the first layers."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    if layers is not None:
        text.num_hidden_layers = layers
        if getattr(text, "layer_types", None):
            text.layer_types = text.layer_types[:1] * layers
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=WEIGHTS[options.weights])  # type: ignore[no-untyped-call]
        if options.lora:
            add_lora(model, options.lora, options.lora_alpha or 2 * options.lora, options.lora_targets, options.seed)
    return model


def _saved(config: PreTrainedConfig, options: ModelOptions, layers: int, length: int) -> int:
    """Bytes that autograd keeps of one pass through that many layers, every memory once, weights apart."""
    register(_COUNTED, _attention)
    model = _on_meta(config, options, layers).train()
    own = {id(each) for each in model.parameters()}
    memory: dict[int, Tensor] = {}  # the tensors are held, so that no address is used again

    def keep(tensor: Tensor) -> Tensor:
        base = tensor if tensor._base is None else tensor._base
        if id(base) not in own:
            memory[id(base)] = base
        return tensor

    positions = torch.arange(length, device="meta")[None]
    embedded = torch.empty(1, length, model.get_input_embeddings().embedding_dim, device="meta", dtype=model.dtype)
    with patched(configs_of(model), _COUNTED), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.base_model(inputs_embeds=embedded.requires_grad_(), position_ids=positions, use_cache=False)
    return _bytes(memory.values())


class _Attention(torch.autograd.Function):
    """Attention as a fused kernel keeps it: its inputs, its output, and one number for each query."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return out


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **_: Any
) -> tuple[Tensor, None]:
    return _Attention.apply(query, key, value).transpose(1, 2), None  # type: ignore[no-untyped-call]
