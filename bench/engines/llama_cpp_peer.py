"""llama.cpp through llama-cpp-python: a GGUF file of the same weights, branches by zero-copy sequence copies.

Its best on a CPU, as measured: one K/V buffer for all sequences ("unified"), flash attention off. K and V are float16
where the weights have 16 bits, as is its default, and float32 where they have 32.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from llama_cpp import llama_cpp
from torch import Tensor, nn

from engines import MOST_BRANCHES, NEW

BATCH = 2048  # rows of a prefill's call
SILENT = llama_cpp.llama_log_callback(lambda level, text, data: None)
NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(model: nn.Module, path: Path) -> None:
    """A Qwen3 model with tied embeddings and no tokenizer, matrices in the model's dtype, norms in float32."""
    config: Any = model.config
    writer = gguf.GGUFWriter(path, "qwen3")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("none")
    for name, weight in model.named_parameters():
        _add(writer, _gguf_name(name), weight.detach())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _gguf_name(name: str) -> str:
    if name == "model.embed_tokens.weight":
        return "token_embd.weight"
    if name == "model.norm.weight":
        return "output_norm.weight"
    number, _, rest = name.removeprefix("model.layers.").partition(".")
    return f"blk.{number}.{NAMES[rest.removesuffix('.weight')]}.weight"


def _add(writer: gguf.GGUFWriter, name: str, weight: Tensor) -> None:
    if weight.ndim == 2 and weight.dtype == torch.bfloat16:
        raw = weight.contiguous().view(torch.uint8).numpy()
        writer.add_tensor(name, raw, raw_dtype=gguf.GGMLQuantizationType.BF16)
    else:
        writer.add_tensor(name, weight.float().numpy())


class LlamaCpp:
    note = (
        "llama.cpp: llama-cpp-python, GGUF of the same weights, unified K/V (float16 beside bfloat16 weights), "
        "flash attention off, prefix shared by llama_memory_seq_cp."
    )

    def __init__(self, path: Path, longest: int, vocabulary: int, dtype: torch.dtype) -> None:
        llama_cpp.llama_log_set(SILENT, None)
        llama_cpp.llama_backend_init()
        given = llama_cpp.llama_model_default_params()
        given.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), given)
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = longest + MOST_BRANCHES * NEW
        params.n_batch, params.n_ubatch = BATCH, 512
        params.n_seq_max, params.kv_unified = MOST_BRANCHES + 1, True
        params.n_threads = params.n_threads_batch = torch.get_num_threads()
        params.flash_attn_type = 0  # disabled
        kind = llama_cpp.GGML_TYPE_F32 if dtype == torch.float32 else llama_cpp.GGML_TYPE_F16
        params.type_k = params.type_v = kind
        self.context = llama_cpp.llama_init_from_model(self.model, params)
        if not self.context:
            raise RuntimeError("llama.cpp cannot make a context")
        self.memory = llama_cpp.llama_get_memory(self.context)
        self.rows = llama_cpp.llama_batch_init(BATCH, 0, 1)
        self.vocabulary = vocabulary
        self.prefix = self.decoded = 0

    def prefill(self, tokens: Sequence[int]) -> None:
        llama_cpp.llama_memory_seq_rm(self.memory, -1, -1, -1)
        for begin in range(0, len(tokens), BATCH):
            part = tokens[begin : begin + BATCH]
            self._decode([(token, begin + k, 0) for k, token in enumerate(part)], logits=False)
        self.prefix = len(tokens)

    def branch(self, count: int) -> None:
        for sequence in range(1, MOST_BRANCHES + 1):
            llama_cpp.llama_memory_seq_rm(self.memory, sequence, -1, -1)
        for sequence in range(1, count + 1):
            llama_cpp.llama_memory_seq_cp(self.memory, 0, sequence, -1, -1)
        self.decoded = 0

    def step(self, tokens: Sequence[int]) -> Sequence[Tensor]:
        position = self.prefix + self.decoded
        self._decode([(token, position, 1 + k) for k, token in enumerate(tokens)], logits=True)
        self.decoded += 1
        found = [llama_cpp.llama_get_logits_ith(self.context, k) for k in range(len(tokens))]
        return [torch.from_numpy(np.ctypeslib.as_array(each, (self.vocabulary,))) for each in found]

    def _decode(self, rows: list[tuple[int, int, int]], logits: bool) -> None:
        """rows: (token, position, sequence)."""
        batch = self.rows
        batch.n_tokens = len(rows)
        for k, (token, position, sequence) in enumerate(rows):
            batch.token[k], batch.pos[k], batch.n_seq_id[k], batch.seq_id[k][0] = token, position, 1, sequence
            batch.logits[k] = logits or k == len(rows) - 1
        code = llama_cpp.llama_decode(self.context, batch)
        if code != 0:
            raise RuntimeError(f"llama_decode: expected 0, got {code}")

    def close(self) -> None:
        llama_cpp.llama_batch_free(self.rows)
        llama_cpp.llama_free(self.context)
        llama_cpp.llama_model_free(self.model)
