"""A tiny random model of every causal-LM type in the installed transformers, built from its own default config.

Sizes are made small by the names of their fields, in sub-configs too. What does not fit by name stands in ``CHANGES``.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.models.dbrx.configuration_dbrx import DbrxAttentionConfig, DbrxFFNConfig

KINDS: tuple[str, ...] = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
VOCABULARY = 128
LARGEST = 30_000_000  # parameters; beyond, a size was not made small

#: What a field's name says about its tiny value; the first match counts.
_SIZES: tuple[tuple[str, int], ...] = (
    (r"vocab_size(_per_layer_input)?|entity_vocab_size|n_vocab", VOCABULARY),
    (r"(num_hidden_layers|n_layers?|num_layers|decoder_layers|encoder_layers|depth)", 4),
    (r"(num_key_value_heads|num_kv_heads|n_head_kv|multi_query_group_num)", 2),
    (r"(.*_)?(num_attention_heads|num_heads|n_heads?|attention_heads)", 4),
    (r"(global_|v_)?head_dim|d_kv|head_size|kv_channels|(qk_nope|qk_rope)_head_dim", 16),
    (r"(.*_)?(hidden_size(_global)?|d_model|n_embd|embed_dim|emb_dim|dim_model|n_embed|embedding_size)", 64),
    (
        r"(.*_)?(intermediate_size(_mlp)?|ffn_dim|n_inner|d_ff|dim_ff|d_inner|ffn_hidden_size|feed_forward_size|adapter_(in_dim|out_dim|input_size))",
        64,
    ),
    (r"(num_(local_|routed_)?experts|n_routed_experts|moe_num_experts)", 4),
    (r"(num_experts_per_tok(en)?|moe_k|moe_topk|moe_top_k|top_k_experts|num_experts_per_token)", 2),
    (r"(n_group|topk_group|num_expert_group)", 1),
    (r"(q_lora_rank|kv_lora_rank|index_head_dim)", 16),
    (r"first_k_dense_replace", 1),
    # Larger than what a Decoder probes at load, smaller than the contexts of the survey.
    (r"(sliding_window(_size)?|attention_chunk_size|index_topk|local_attention_window_len|window_size)", 9),
)


def _tiny_fields(config: PreTrainedConfig) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    taken = 3
    for name, value in config.to_dict().items():
        own = name if name in config.sub_configs else config.attribute_map.get(name, name)
        if own in config.sub_configs and isinstance(getattr(config, own, None), PreTrainedConfig):
            fields[own] = _tiny_fields(getattr(config, own))
        elif isinstance(value, int) and not isinstance(value, bool):
            size = next((tiny for pattern, tiny in _SIZES if re.fullmatch(pattern, name)), None)
            if size is not None and value > 0:
                fields[name] = size
            elif name.endswith(("_token_id", "_token_index", "_index")) and value >= VOCABULARY:
                fields[name], taken = taken, taken + 1
    return fields


_ROPE = {"rope_type": "default", "rope_theta": 1e4}
_HEADS_ALIKE = {"num_key_value_heads": 4}
_NOTE = {**_HEADS_ALIKE, "head_dim": 32, "per_layer_config": None}
_INDEXED = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 2, "ngram_vocab_size_base": 100, "split_ngram_parts": 2,
    "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 8,
    "indexer_compress_ratio": 2,
}  # fmt: skip
_DBRX = DbrxAttentionConfig(kv_n_heads=2)
_DBRX.rope_theta = 1e4  # its default lacks what the model reads

#: type -> what differs from the sizes by name.
CHANGES: dict[str, dict[str, Any]] = {
    "axk1": _HEADS_ALIKE,
    "bailing_hybrid": {"layer_types": ["linear_attention", "full_attention"] * 2, **_HEADS_ALIKE},
    "bamba": {"attn_layer_indices": [1, 3]},
    "blt": {"encoder_hash_byte_group_vocab": 64},
    "cohere_compass_text": {"rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE}},
    "dbrx": {"attn_config": _DBRX, "ffn_config": DbrxFFNConfig(hidden_size=64, ffn_hidden_size=64)},
    "deepseek_v2": {**_HEADS_ALIKE, "num_experts_per_tok": 2},
    "deepseek_v3": _HEADS_ALIKE,
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "first_k_dense_replace": 1, "n_shared_experts": 1},
    "dots3_note": {"text_config": _NOTE, "vision_config": {"per_layer_config": None}},
    "dots3_note_text": _NOTE,
    "gemma3n_text": {
        "num_kv_shared_layers": 2, "layer_types": ["sliding_attention", "full_attention"] * 2,
        "intermediate_size": [64] * 4, "activation_sparsity_pattern": [0.95, 0.0] * 2,
    },
    "glm4_moe_lite": _HEADS_ALIKE,
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": {"layer_types": ["linear_attention", "full_attention"] * 2, **_HEADS_ALIKE},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "longcat_flash": _HEADS_ALIKE,
    "mamba2": {"num_heads": 8},
    "minicpm3": _HEADS_ALIKE,
    "ministral": {"head_dim": 16},
    "nemotron": {"num_key_value_heads": 2},
    "nemotron_h": {"n_groups": 2},
    "qwen4_exp": {"text_config": _INDEXED},
    "qwen4_exp_text": _INDEXED,
    "reformer": {"axial_pos_embds_dim": [32, 32]},
    "xmod": {"default_language": "en_XX"},
    "youtu": _HEADS_ALIKE,
    "zamba": {
        "num_hidden_layers": 4, "attention_hidden_size": 128, **_HEADS_ALIKE,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
    },
    "zamba2": {"attention_hidden_size": 128, **_HEADS_ALIKE, "layers_block_type": ["mamba", "hybrid"] * 2},
    "zaya": {"num_experts_per_tok": 1},
}  # fmt: skip

#: type -> why no tiny model of it can be made.
NOT_BUILT: dict[str, str] = {
    "gemma3n": "its vision part needs the package timm",
    "gemma4_assistant": "it drafts for another model, whose states it reads; its own default config is refused",
    "gemma4_unified_assistant": "it drafts for another model, whose states it reads",
    "musicgen": "AutoModelForCausalLM gives its decoder the config of the whole, which has not what the decoder reads",
    "musicgen_melody": "as musicgen",
}


def _merged(fields: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(fields)
    for name, value in changes.items():
        nested = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = _merged(merged[name], value) if nested else value
    return merged


def build(kind: str, **changes: Any) -> nn.Module:
    """The tiny model of a type in evaluation mode, float32, with weights large enough for attention to matter.

    Types that can be encoders and decoders are decoders. ``changes`` are made to its config. ValueError where a size
    was not made small.
    """
    default = AutoConfig.for_model(kind)
    fields = _merged(_merged(_tiny_fields(default), CHANGES.get(kind, {})), changes)
    if getattr(default, "is_decoder", None) is False:
        fields["is_decoder"] = True
    config = type(default)(**fields)
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters())
    if size > LARGEST:
        raise ValueError(f"{kind} has {size} parameters")
    torch.manual_seed(0)
    model: nn.Module = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("q_norm.weight"):  # else some have attention so sharp that rounding grows
                parameter *= len(parameter) ** -0.5
            elif name.endswith(("states_scale", "residual_scale")):
                continue  # ones, by which what layers add counts
            elif parameter.ndim >= 2 or "norm" not in name.lower():
                nn.init.normal_(parameter, std=0.1)
    return model.eval()


def layer_patterns(kind: str) -> dict[str, dict[str, Any]]:
    """Changes of the config that give the 4 layers of a type other windows; none for types without such a choice."""
    config = AutoConfig.for_model(kind)
    if not {"layer_types", "sliding_window"} <= vars(config).keys():
        return {}
    patterns = {"full": (0, 0), "sliding": (1, 1), "mixed": (1, 0)}
    changes: dict[str, dict[str, Any]] = {}
    for name, slides in patterns.items():
        types = [("full_attention", "sliding_attention")[one] for one in slides] * 2
        changes[name] = {"layer_types": types, **({"sliding_window": 9} if any(slides) else {})}
        if hasattr(config, "use_sliding_window"):
            changes[name]["use_sliding_window"] = any(slides)
    return changes


def context(model: nn.Module, count: int, seed: int) -> torch.Tensor:
    """[count] random token ids without special ones."""
    special = {0, 1, 2, 3, *(value for name, value in _flat(model.config) if name.endswith(("_id", "_index")))}
    size = min(VOCABULARY, model.get_input_embeddings().weight.shape[0])
    plain = torch.tensor([token for token in range(size) if token not in special])
    return plain[torch.randint(len(plain), (count,), generator=torch.Generator().manual_seed(seed))]


def _flat(config: PreTrainedConfig) -> list[tuple[str, int]]:
    entries = []
    for name, value in vars(config).items():
        if isinstance(value, PreTrainedConfig):
            entries += _flat(value)
        elif isinstance(value, int):
            entries.append((name, value))
    return entries
