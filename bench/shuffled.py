"""A llama model with its channels in another order.

Published weights may come from a file of 4 bits already, which flatters formats of 4 bits. The same channels in another
order (residual stream, the middle of each MLP, each head's values) are the same function with the same numbers, but
their groups are of 32 others.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch


def load(folder: Path, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    shuffle(model)
    return model


@torch.no_grad()
def shuffle(model: Any) -> None:
    """Channels in another order, in place, wherever that leaves a llama model's function as it is."""
    generator = torch.Generator().manual_seed(0)
    config = model.config
    stream = torch.randperm(config.hidden_size, generator=generator)
    inner = model.model
    inner.embed_tokens.weight.copy_(inner.embed_tokens.weight[:, stream])
    inner.norm.weight.copy_(inner.norm.weight[stream])
    if not config.tie_word_embeddings:
        model.lm_head.weight.copy_(model.lm_head.weight[:, stream])
    for layer in inner.layers:
        attention, mlp = layer.self_attn, layer.mlp
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            norm.weight.copy_(norm.weight[stream])
        for taking in (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj):
            taking.weight.copy_(taking.weight[:, stream])
        for giving in (attention.o_proj, mlp.down_proj):
            giving.weight.copy_(giving.weight[stream])
        middle = torch.randperm(config.intermediate_size, generator=generator)
        for taking in (mlp.gate_proj, mlp.up_proj):
            taking.weight.copy_(taking.weight[middle])
        mlp.down_proj.weight.copy_(mlp.down_proj.weight[:, middle])
        values = torch.randperm(config.head_dim, generator=generator)
        of_heads = [head * config.head_dim + values for head in range(config.num_attention_heads)]
        attention.v_proj.weight.copy_(attention.v_proj.weight[torch.cat(of_heads[: config.num_key_value_heads])])
        attention.o_proj.weight.copy_(attention.o_proj.weight[:, torch.cat(of_heads)])
