"""Tiny random models that ignore the attention interface, or mask by rules of their own."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoConfig

from scripted import tokenizer
from tiny_models import TAGS, VOCABULARY, random_model, teach

_ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False}
_GPTJ = {"n_embd": 48, "n_head": 4, "n_layer": 2, "rotary_dim": 8}

#: model type -> its sizes.
SIZES: dict[str, dict[str, Any]] = {
    "falcon": {"hidden_size": 48, "num_attention_heads": 4, "num_hidden_layers": 2},
    "bloom": {"hidden_size": 48, "n_head": 4, "n_layer": 2},
    "mpt": {"d_model": 48, "n_heads": 4, "n_layers": 2},
    "gptj": _GPTJ,
    "rwkv": {"hidden_size": 48, "attention_hidden_size": 48, "num_hidden_layers": 2, "intermediate_size": 64},
    "xlm": {"emb_dim": 48, "n_heads": 4, "n_layers": 2},
}


def tiny_own(kind: str, *, dtype: torch.dtype = torch.float32, **changes: Any) -> nn.Module:
    """A tiny random model of a type in evaluation mode."""
    sizes = {"vocab_size": VOCABULARY, **_ENDS, **SIZES[kind], **changes}
    model = random_model(AutoConfig.for_model(kind, **sizes), dtype)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):  # some are not called norms
            module.reset_parameters()
    return model


def taught_own(kind: str) -> tuple[nn.Module, Any]:
    """A tiny model of a type which often organizes, and its tokenizer."""
    tok = tokenizer(*TAGS)
    model = tiny_own(kind, vocab_size=len(tok), eos_token_id=tok.eos_token_id)
    teach(model, tok)
    return model, tok
