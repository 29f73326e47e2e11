"""Models with random weights, of the shape that benches time and of a tiny one."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

#: Qwen3-0.6B's.
SHAPE = {"vocab_size": 151_936, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
         "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128}  # fmt: skip
TINY = {"vocab_size": 256, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}  # fmt: skip


def random_qwen3(shape: Mapping[str, int], dtype: torch.dtype) -> Qwen3ForCausalLM:
    """A model with random weights and tied embeddings."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return Qwen3ForCausalLM(Qwen3Config(**shape, tie_word_embeddings=True, max_position_embeddings=8192)).eval()
    finally:
        torch.set_default_dtype(before)
