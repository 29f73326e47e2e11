"""Decoding with recurrent layers beside transformers' batched cache: B branches behind one prefix, in steps.

`pytest bench/bench_hybrid.py --benchmark` runs the shape of Qwen3.5-0.8B with random weights: 18 layers with a state,
6 of attention. Prefixes are prefilled first, and what is timed is a step of all branches with the logits of each.
Without the flag a tiny model runs, and transformers' logits must be ours. `--quick`: bfloat16, 8 branches behind 4,096
tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping

import pytest
import torch
from transformers import AutoModelForCausalLM, Qwen3_5TextConfig

from bench_generation import APART, PREFIXES, check, in_turn, row_of
from engines import NEW, Engine
from engines.hugging_face import HuggingFace
from engines.ours import Ours

_LAYERS = ["linear_attention", "linear_attention", "linear_attention", "full_attention"]
SHAPE = {"vocab_size": 248_320, "hidden_size": 1024, "intermediate_size": 3584, "num_hidden_layers": 24,
         "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 256, "linear_num_key_heads": 16,
         "linear_num_value_heads": 16, "layer_types": _LAYERS * 6}  # fmt: skip
TINY = {"vocab_size": 256, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "linear_num_key_heads": 2,
        "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
        "layer_types": _LAYERS}  # fmt: skip


class HuggingFaceStates(HuggingFace):
    """The batch is made by reordering: transformers' recurrent layers cannot be repeated otherwise."""

    @torch.inference_mode()
    def branch(self, count: int) -> None:
        self.cache = copy.deepcopy(self.prefix)
        assert self.cache is not None
        self.cache.reorder_cache(torch.zeros(count, dtype=torch.int64))


def random_qwen3_5(shape: Mapping[str, object], dtype: torch.dtype) -> torch.nn.Module:
    torch.manual_seed(0)
    config = Qwen3_5TextConfig(**shape, tie_word_embeddings=True, max_position_embeddings=8192)
    model: torch.nn.Module = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model.eval()


@pytest.fixture(scope="module")
def held() -> Iterator[dict[torch.dtype, dict[str, Engine]]]:
    engines: dict[torch.dtype, dict[str, Engine]] = {}
    yield engines
    close(engines)


def close(held: dict[torch.dtype, dict[str, Engine]]) -> None:
    for engines in held.values():
        for engine in engines.values():
            engine.close()
    held.clear()


@pytest.mark.quick(branches=[8], prefix=[4096], dtype=[torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("branches", [1, 8])
def test_decoding(benchmark, table, held, branches, prefix, dtype):
    shape = SHAPE if benchmark.enabled else TINY
    if not benchmark.enabled:
        prefix, dtype = prefix // 16, torch.float32
    if dtype not in held:
        close(held)
        model = random_qwen3_5(shape, dtype)
        held[dtype] = {
            "ours": Ours(model, max(PREFIXES)),
            "eager": Ours(model, max(PREFIXES), record=False),
            "transformers": HuggingFaceStates(model),
        }
    engines = held[dtype]
    context = torch.randint(shape["vocab_size"], (prefix,), generator=torch.Generator().manual_seed(0)).tolist()
    for engine in engines.values():
        engine.prefill(context)
        engine.branch(branches)
    tokens = torch.randint(shape["vocab_size"], (NEW, branches), generator=torch.Generator().manual_seed(1)).tolist()
    check(engines, tokens[:2], APART[dtype])
    if not benchmark.enabled:
        benchmark.pedantic(engines["ours"].step, args=(tokens[2],))
        return
    row = row_of(in_turn(benchmark, engines, tokens[2:]), dtype, branches, prefix)
    benchmark.extra_info |= row
    table.add(row)
    table.note("goal: 5 x transformers with 8 branches behind 4,096 tokens")
