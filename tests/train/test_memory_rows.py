"""The memory estimate of models that train one row a trace: a hybrid, and types with attention of their own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_memory import saved

from asyncthink.cli.train import app
from asyncthink.model.decoder import Decoder
from asyncthink.model.fallback import FallbackDecoder
from asyncthink.train.loading import ModelOptions
from asyncthink.train.logprobs import token_logprobs
from asyncthink.train.memory import estimate
from asyncthink.train.packed_attention import use_packed_attention
from asyncthink.train.packing import Row, pack
from tiny_fallbacks import tiny_own
from tiny_hybrids import tiny_hybrid
from tiny_models import tiny, tokens

ROWS, LENGTH = 3, 96


@pytest.mark.parametrize("kind", ["qwen3_5", "mamba2", "falcon", "bloom"])
def test_activations_are_near_what_autograd_keeps(kind: str) -> None:
    model = tiny_own(kind) if kind in ("falcon", "bloom") else tiny_hybrid(kind)
    assert use_packed_attention(model) is not None
    learned = (False, *(True,) * (LENGTH - 1))
    traces = [Row("solo", "shared", tuple(tokens(LENGTH, seed).tolist()), learned) for seed in range(ROWS)]
    batch = pack([[trace] for trace in traces], 10**6)
    token_logprobs(model, batch)  # what is made once
    kept = saved(model.base_model, lambda: token_logprobs(model, batch))
    found = estimate(model.config, ModelOptions(), ROWS * LENGTH, trace_tokens=LENGTH)
    assert kept == pytest.approx(found["activations"], rel=0.3)
    assert found["total"] == sum(size for name, size in found.items() if name != "total")


def test_states_and_caches_are_the_samplers() -> None:
    hybrid = tiny_hybrid("qwen3_5")
    decoder = Decoder(hybrid, num_pages=10, num_states=5)
    assert decoder.states is not None
    found = estimate(hybrid.config, ModelOptions(), 100, cache_tokens=160, num_states=5)
    assert found["states"] == 5 * decoder.states.bytes_per_state
    assert found["cache"] == 160 * decoder.storage.bytes_per_token
    assert estimate(hybrid.config, ModelOptions(), 100, cache_tokens=160)["states"] == 256 * found["states"] // 5
    assert estimate(hybrid.config, ModelOptions(), 100)["states"] == 0
    for kind in ("falcon", "bloom", "rwkv"):
        own: Any = tiny_own(kind)
        made = FallbackDecoder(own, num_pages=10)
        unit = made.storage.bytes_per_token or -(-made.storage.state_bytes // 16)
        found = estimate(own.config, ModelOptions(), 100, cache_tokens=160)
        assert found["cache"] == 160 * unit
        assert "states" not in found


def test_what_has_no_effect_is_refused() -> None:
    config: Any = tiny("qwen3").config
    with pytest.raises(ValueError, match="num_states: expected none, as qwen3 has no recurrent layers, got 4"):
        estimate(config, ModelOptions(), 100, num_states=4)
    with pytest.raises(ValueError, match="model: qwen3_moe cannot be run without memory, so that its activations"):
        estimate(tiny("qwen3_moe").config, ModelOptions(), 100)
    with pytest.raises(ValueError, match="trace_tokens: expected at least 1, got 0"):
        estimate(config, ModelOptions(), 100, trace_tokens=0)


def test_the_command_counts_states(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_hybrid("qwen3_5", dtype=torch.float32).config.save_pretrained(tmp_path)
    command = ["memory", "--model", str(tmp_path), "--num-states", "64", "--trace-tokens", "128"]
    app([*command, "--batch-tokens", "512"], standalone_mode=False)
    assert "\nstates " in capsys.readouterr().out
