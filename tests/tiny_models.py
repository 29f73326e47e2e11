"""Tiny random decoders of many families, their steps, and the logits of plain eager transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, Qwen3Config, Qwen3ForCausalLM

from asyncthink.model.decoder import Decoder
from asyncthink_kernels.cache import Branch
from scripted import tokenizer

VOCABULARY = 97
WINDOW = 7
TAGS = [tag for i in (1, 2, 3) for tag in (f"<FORK-{i}>", f"</FORK-{i}>", f"<JOIN-{i}>", f"</JOIN-{i}>")]
TAGS += ["<ANSWER>", "</ANSWER>", "<RETURN>", "</RETURN>"]
#: The tag that a sensible agent writes next.
FOLLOWS = {
    "<FORK-1>": "</FORK-1>", "</FORK-1>": "<FORK-2>", "<FORK-2>": "</FORK-2>", "</FORK-2>": "<JOIN-2>",
    "</JOIN-2>": "<JOIN-1>", "</JOIN-1>": "<ANSWER>", "<ANSWER>": "k", "k": "</ANSWER>",
    "<RETURN>": "x", "x": "y", "y": "z", "z": "</RETURN>", "\n": "<FORK-1>", ":": "<RETURN>",
}  # fmt: skip

_BASE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_LATENT = {  # multi-head latent attention: V is narrower than K, which is rotated at its end
    "head_dim": 8, "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16, "v_head_dim": 16, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1,
    "topk_group": 1, "first_k_dense_replace": 1, "moe_intermediate_size": 32,
}  # fmt: skip
_SCALED = {"rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}
_MIXED = ["sliding_attention", "full_attention", "sliding_attention"]

#: family -> (model type, what differs from the base). Together they have everything that reaches attention.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3": ("qwen3", {}),
    "qwen3_moe": ("qwen3_moe", _EXPERTS),
    "llama": ("llama", {}),
    "llama3_rope": (
        "llama",
        {"rope_parameters": {**_SCALED, "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}},
    ),
    "yarn_rope": ("qwen3", {"rope_parameters": {**_SCALED, "rope_type": "yarn"}}),
    "linear_rope": ("llama", {"rope_parameters": {"rope_theta": 1e4, "rope_type": "linear", "factor": 2.0}}),
    "mistral": ("mistral", {"sliding_window": WINDOW}),
    "gemma2": ("gemma2", {"sliding_window": WINDOW, "layer_types": _MIXED, "query_pre_attn_scalar": 8}),
    "gemma3": ("gemma3_text", {"sliding_window": WINDOW, "layer_types": _MIXED}),
    "gpt_oss": ("gpt_oss", {**_EXPERTS, "sliding_window": WINDOW, "layer_types": _MIXED}),
    "phi3": ("phi3", {"hidden_size": 64, "partial_rotary_factor": 0.5}),
    "olmo2": ("olmo2", {}),
    "cohere2": ("cohere2", {"sliding_window": WINDOW, "layer_types": _MIXED, "logit_scale": 0.5}),
    "glm": ("glm", {"partial_rotary_factor": 0.5}),
    "stablelm": ("stablelm", {"hidden_size": 64, "partial_rotary_factor": 0.5}),
    "nanochat": ("nanochat", {}),
    "gemma4": (
        "gemma4_text",
        {"sliding_window": WINDOW, "layer_types": _MIXED[::-1], "vocab_size_per_layer_input": VOCABULARY,
         "hidden_size_per_layer_input": 8, "global_head_dim": 32, "num_hidden_layers": 3},
    ),
    "deepseek_v3": ("deepseek_v3", _LATENT),
    "gpt2": ("gpt2", {"n_embd": 64, "n_layer": 3, "n_head": 4, "n_positions": 512}),
}  # fmt: skip


def tiny(family: str, *, dtype: torch.dtype = torch.float32, **changes: Any) -> nn.Module:
    """A tiny random model of a family in evaluation mode, with weights large enough for attention to matter."""
    kind, differences = FAMILIES.get(family, (family, {}))
    return random_model(AutoConfig.for_model(kind, **{**_BASE, **differences, **changes}), dtype)


def random_model(config: Any, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A random model of a config in evaluation mode, with weights large enough for attention to matter."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2:
            nn.init.normal_(parameter, std=0.16)
        elif "norm" not in name:
            nn.init.normal_(parameter, std=0.5)
    return model.eval()


def tokens(count: int, seed: int) -> Tensor:
    """[count] int64 token ids."""
    return torch.randint(3, VOCABULARY, (count,), generator=torch.Generator().manual_seed(seed))


def eager(model: nn.Module, context: Tensor, *, start: int = 0, past: DynamicCache | None = None) -> Tensor:
    """context [T] at positions start.. -> logits [T,V] of transformers' own eager attention; ``past`` is continued."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            positions = torch.arange(start, start + context.shape[0])[None]
            output = model(
                input_ids=context[None], position_ids=positions, past_key_values=past, use_cache=past is not None
            )
        return output.logits[0].float()
    finally:
        model.set_attn_implementation(before)


def eager_cache(model: nn.Module, context: Tensor, *, start: int = 0) -> DynamicCache:
    """K and V of all layers and all tokens for context [T] at positions start..."""
    cache = DynamicCache()
    eager(model, context, start=start, past=cache)
    return cache


def spliced(caches: Sequence[tuple[DynamicCache, int, int]]) -> DynamicCache:
    """One cache from token spans [start, stop) of others."""
    joined = DynamicCache()
    for layer in range(len(caches[0][0].layers)):
        k = torch.cat([cache.layers[layer].keys[:, :, start:stop] for cache, start, stop in caches], dim=2)
        v = torch.cat([cache.layers[layer].values[:, :, start:stop] for cache, start, stop in caches], dim=2)
        joined.update(k, v, layer)
    return joined


def feed(decoder: Decoder, *work: tuple[Branch, Tensor]) -> list[Tensor]:
    """One step with the given new tokens of each branch -> logits [n,V] of each."""
    plan = decoder.cache.plan([(branch, len(new)) for branch, new in work])
    ids = torch.cat([new for _, new in work])
    logits = decoder.forward(ids, plan, torch.arange(len(ids), device="cpu"))
    return list(logits.split([len(new) for _, new in work]))


def same(got: Tensor, expected: Tensor, tolerance: float = 5e-5) -> None:
    """Rows of logits agree, relative to their norm."""
    assert got.shape == expected.shape
    assert got.dtype == torch.float32
    error = ((got - expected).norm(dim=-1) / expected.norm(dim=-1)).max().item()
    assert error < tolerance


def joined_branches(decoder: Decoder, trunk: Tensor, own: Tensor, worker: Tensor) -> tuple[Branch, Branch]:
    """An organizer and its worker, forked at the end of ``trunk``: they continue with ``own`` and ``worker``."""
    root = decoder.cache.root()
    feed(decoder, (root, trunk))
    child = decoder.cache.fork(root)
    feed(decoder, (root, own), (child, worker))
    return root, child


def organizer(layers: int = 3) -> tuple[nn.Module, Any]:
    """A model that often organizes, because each tag makes a plausible next token likely, and its tokenizer."""
    tok = tokenizer(*TAGS)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tok), hidden_size=48, intermediate_size=64, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=1024, tie_word_embeddings=False,
        eos_token_id=tok.eos_token_id,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(0.5)
        for before, after in FOLLOWS.items():
            model.lm_head.weight[tok.convert_tokens_to_ids(after)] += (
                2.0 * model.model.embed_tokens.weight[tok.convert_tokens_to_ids(before)]
            )
        model.lm_head.weight *= 6
    return model, tok


def taught(family: str) -> tuple[nn.Module, Any]:
    """A tiny model of a family in which attention matters, and which often organizes; and its tokenizer."""
    tok = tokenizer(*TAGS)
    model = tiny(family, vocab_size=len(tok), tie_word_embeddings=False, eos_token_id=tok.eos_token_id)
    teach(model, tok)
    return model, tok


def teach(model: nn.Module, tok: Any) -> None:
    """Make a plausible next token of each tag likely."""
    into, out = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    with torch.no_grad():
        into *= 20
        for before, after in FOLLOWS.items():
            row = into[tok.convert_tokens_to_ids(before)]
            out[tok.convert_tokens_to_ids(after)] += (
                1.1 / (getattr(model.config, "logit_scale", None) or 1.0) * row / row.norm()
            )
