"""A tiny model folder whose model draws <unk> and <pad> for ever, with the tokenizer of the box."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from asyncthink.protocol.prompts import PromptFormat
from asyncthink.train.tokenizer import build_tokenizer

PROMPTS = PromptFormat("<organizer>{question}\n", "<worker>", "<worker>{subquery}\n", "<solo>{question}\n")


def save_untrained(
    folder: Path,
    *,
    prompts: PromptFormat | None = PROMPTS,
    chat_template: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Path:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = chat_template
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=2048, eos_token_id=2, dtype=dtype,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(config)
    torch.nn.init.zeros_(model.lm_head.weight)
    torch.nn.init.ones_(model.lm_head.weight[0])  # <unk> or, where its logit is negative, <pad>: neither acts
    model.to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if prompts is not None:
        prompts.save(folder)
    return folder
