"""Tiny random models with recurrent layers, and their logits as users get them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from scripted import tokenizer
from tiny_models import FOLLOWS, TAGS, VOCABULARY, tiny

_LINEAR = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}  # fmt: skip
_SSM = {
    "mamba_n_heads": 4, "mamba_d_head": 24, "mamba_d_state": 8, "mamba_expand": 2, "mamba_chunk_size": 8,
    "attn_layer_indices": [1],
}  # fmt: skip

#: family -> (model type, what differs from the base of ``tiny_models``).
HYBRIDS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3_5": ("qwen3_5_text", _LINEAR),
    "mamba2": ("mamba2", {"num_heads": 4, "head_dim": 24, "state_size": 8, "n_groups": 1, "chunk_size": 8,
                          "expand": 2}),
    "falcon_h1": ("falcon_h1", {**_SSM, "mamba_d_ssm": 96}),
    "lfm2": ("lfm2", {"layer_types": ["conv", "full_attention", "conv"]}),
    "jamba": ("jamba", {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 8, "mamba_dt_rank": 4,
                        "num_experts": 2, "num_local_experts": 2, "num_experts_per_tok": 1}),
}  # fmt: skip


def tiny_hybrid(family: str, *, dtype: torch.dtype = torch.float32, **changes: Any) -> nn.Module:
    """A tiny random model of a family in evaluation mode."""
    kind, differences = HYBRIDS[family]
    return tiny(kind, dtype=dtype, **{**differences, **changes})


def alone(model: nn.Module, context: Tensor) -> Tensor:
    """context [T] -> logits [T,V] of the model called with token ids alone."""
    with torch.no_grad():
        logits: Tensor = model(input_ids=context[None]).logits[0].float()
        return logits


def taught_hybrid(family: str) -> tuple[nn.Module, Any]:
    """A tiny model of a family which often organizes, because each tag makes a plausible next one likely."""
    tok = tokenizer(*TAGS)
    model = tiny_hybrid(family, vocab_size=len(tok), tie_word_embeddings=False, eos_token_id=tok.eos_token_id)
    into, out = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    with torch.no_grad():
        into *= 20
        for before, after in FOLLOWS.items():
            row = into[tok.convert_tokens_to_ids(before)]
            out[tok.convert_tokens_to_ids(after)] += 1.1 * row / row.norm()
    return model, tok


__all__ = ["HYBRIDS", "VOCABULARY", "alone", "taught_hybrid", "tiny_hybrid"]
