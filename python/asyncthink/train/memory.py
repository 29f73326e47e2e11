"""An estimate of a training step's memory from the model's configuration, without loading the model.

Weights, gradients and moments are counted on torch's meta device. So are activations: a pass runs there, and the
tensors that autograd keeps are added up (:mod:`.counted`). Nothing is measured on a GPU: fragmentation and kernel
scratch are not included.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig

from asyncthink.model.memory import DEFAULT_STATES
from asyncthink.model.recurrent import has_states
from asyncthink.train.counted import count_pass, own_token_bytes, probe, state_bytes
from asyncthink.train.loading import WEIGHTS, ModelOptions
from asyncthink.train.logprobs import CHUNK
from asyncthink.train.lora import add_lora
from asyncthink.train.sharding import decoder_layers


def estimate(
    config: PreTrainedConfig,
    options: ModelOptions,
    batch_tokens: int,
    cache_tokens: int = 0,
    processes: int = 1,
    *,
    num_states: int | None = None,
    trace_tokens: int = 1024,
) -> dict[str, int]:
    """Bytes of a training step of a model with ``config``, by purpose, in each of ``processes`` processes.

    * "weights", "gradients", "moments": AdamW keeps two moments of each trainable weight.
    * "activations": of one batch of ``batch_tokens`` tokens without autocast, which can only make them smaller. A model
      that cannot be packed (recurrent layers, attention of its own) runs them as rows of ``trace_tokens``, each a trace
      with its prefix: a prefix that several traces share counts for each of them, and so does padding.
    * "logits": one chunk of them with its gradient.
    * "cache": the sampler's K/V of ``cache_tokens`` tokens (GRPO), in pages or in the caches of a fallback decoder.
    * "states": the sampler's ``num_states`` recurrent states, of a model with such layers; by default 256, the most
      that it takes by itself; 0 without ``cache_tokens``.
    * "total": the sum.

    With several processes weights, gradients and moments are those of the process with the most rows
    (:mod:`.sharding`), and there are two more:

    * "gathered": whole weights during a pass, of two layers (one computes, the next one comes) and of what is outside
      of layers, and the whole gradients of one layer and of what is outside.
    * "copy": the whole weights that the sampler decodes with; 0 without ``cache_tokens``.

    Raises ImportError if ``options`` request LoRA without peft; ValueError for fewer than 1 process or trace token, for
    ``num_states`` of a model without recurrent layers, for a model that cannot be run on the meta device, and for
    several processes and a model without decoder layers that could be gathered one at a time.

    >>> from transformers import Qwen3Config
    >>> small = Qwen3Config(num_hidden_layers=2, hidden_size=64, num_attention_heads=4, num_key_value_heads=2,
    ...                     head_dim=16, intermediate_size=128, vocab_size=1000, tie_word_embeddings=True)
    >>> estimate(small, ModelOptions(), batch_tokens=1000)["weights"] == 4 * (1000 * 64 + 2 * (36864 + 160) + 64)
    True
    """
    if processes < 1:
        raise ValueError(f"processes: expected at least 1, got {processes}")
    if trace_tokens < 1:
        raise ValueError(f"trace_tokens: expected at least 1, got {trace_tokens}")
    dtype = WEIGHTS[options.weights]
    model = _on_meta(config, options)
    stateful = has_states(model)
    if num_states is not None and not stateful:
        raise ValueError(f"num_states: expected none, as {config.model_type} has no recurrent layers, got {num_states}")
    probed = probe(model)
    rows = -(-batch_tokens // trace_tokens) if stateful or not probed.packable else 1
    kept = count_pass(model, rows, -(-batch_tokens // rows), counted=probed.calls > 0)
    inputs = kept.layers * batch_tokens * int(config.get_text_config().hidden_size) * dtype.itemsize
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    token_bytes = probed.token_bytes if probed.calls or stateful else own_token_bytes(config, dtype)
    sizes = {
        "weights": _bytes(model.parameters(), processes),
        "gradients": _bytes(trainable, processes),
        "moments": 2 * _bytes(trainable, processes),
        # Checkpointing keeps the input of each layer, and everything of the layer that is being recomputed.
        "activations": kept.outside + inputs + kept.largest if options.checkpointing else kept.total,
        "logits": 4 * CHUNK * torch.float32.itemsize,
        "cache": cache_tokens * token_bytes,
    }
    if stateful:
        states = DEFAULT_STATES if num_states is None else num_states
        sizes["states"] = states * state_bytes(config, dtype) if cache_tokens else 0
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


def _on_meta(config: PreTrainedConfig, options: ModelOptions) -> Any:
    """A model on the meta device: shapes without memory."""
    with torch.device("meta"):
        made = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=WEIGHTS[options.weights])  # type: ignore[no-untyped-call]
        if options.lora:
            add_lora(made, options.lora, options.lora_alpha or 2 * options.lora, options.lora_targets, options.seed)
    return made.train()
