"""A transformers model as a GGUF file, so that llama.cpp computes with the same weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
from torch import Tensor

ARCHITECTURES = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen3": gguf.MODEL_ARCH.QWEN3}


def kind_of(kind: str) -> Callable[[str], str]:
    """``kind`` for all matrices, but embeddings and the head have 8 bits beside 4, as ours."""
    ends = "Q8_0" if kind.startswith("Q4") else kind
    return lambda stem: ends if stem in ("token_embd", "output") else kind


def without_tokenizer(writer: gguf.GGUFWriter) -> None:
    """A model that reads token ids."""
    writer.add_tokenizer_model("none")


def write_gguf(
    model: Any,
    path: Path,
    kind: str | Callable[[str], str],
    tokenizer: Callable[[gguf.GGUFWriter], None] = without_tokenizer,
) -> None:
    """A llama or Qwen3 model: matrices in ``kind`` (F32, F16, BF16, Q8_0, Q4_0, ...), norms in float32.

    ``kind`` may also give the kind of a stem (attn_q, ffn_down, output, ...). A file that is there is whole: it is
    written beside its place first.
    """
    chosen = kind_of(kind) if isinstance(kind, str) else kind
    config = model.config
    names = gguf.get_tensor_name_map(ARCHITECTURES[config.model_type], config.num_hidden_layers)
    draft = path.with_name(f"{path.name}.part")
    writer = gguf.GGUFWriter(draft, config.model_type)
    _sizes(writer, config)
    tokenizer(writer)
    for parameter, value in model.named_parameters():
        name = f"{names.get_name(parameter.removesuffix('.weight'))}.weight"
        weight = value.detach().float()
        if config.model_type == "llama" and (".attn_q." in name or ".attn_k." in name):
            weight = _pairs(weight, config.num_attention_heads if ".attn_q." in name else config.num_key_value_heads)
        numbers = weight.contiguous().numpy()
        if weight.ndim == 1:
            writer.add_tensor(name, numbers)
            continue
        quantization = gguf.GGMLQuantizationType[chosen(name.split(".")[-2])]
        writer.add_tensor(name, gguf.quantize(numbers, quantization), raw_dtype=quantization)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    draft.replace(path)


def _sizes(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)


def _pairs(weight: Tensor, heads: int) -> Tensor:
    """Rows [heads * D, I] as llama.cpp rotates a llama's: the two halves of each head in turn."""
    return weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
