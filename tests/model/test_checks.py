"""Models that cannot be served are refused at load, each with a one-line error that names the model type."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, Qwen3Model, T5Config, T5ForConditionalGeneration

from asyncthink.model import memory as model_memory
from asyncthink.model.attention import Step
from asyncthink.model.decoder import Decoder, DecoderError
from tiny_models import tiny, tokens

_SMALL = {"vocab_size": 97, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "hidden_size": 64}
_BART = {"d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 64}
_NEO = {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]}
_GROUPED = {"num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 64}
_SLIDING = {**_GROUPED, "sliding_window": 4, "use_sliding_window": True, "max_window_layers": 1}
_EXPERTS = {"num_local_experts": 4, "num_experts": 4, "moe_intermediate_size": 32}

IGNORED = "ignores the attention implementation it is given, so it cannot run on ours"
RECURRENT = "has recurrent layers whose states do not go through transformers' cache"
LAYERS = "has layers that are neither full nor sliding attention: "

REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("gptj", {"rotary_dim": 8}, IGNORED),
    ("bloom", {}, IGNORED),
    ("mpt", {}, IGNORED),
    ("falcon", {}, IGNORED),
    ("gpt_neo", _NEO, IGNORED),
    ("recurrent_gemma", {"num_hidden_layers": 3, **_GROUPED}, RECURRENT),
    ("llama4_text", {"intermediate_size_mlp": 64, **_GROUPED, **_EXPERTS}, LAYERS + "chunked_attention"),
    ("rwkv", {"attention_hidden_size": 64}, RECURRENT),
    ("diffllama", _GROUPED, "must call attention exactly once in each of its 2 layers, got 4 calls from 2 modules"),
    ("phimoe", {**_SLIDING, **_EXPERTS}, "masks a sliding window of 4 tokens without telling its attention"),
    ("qwen2_moe", {**_SLIDING, **_EXPERTS}, "masks a sliding window of 4 tokens without telling its attention, in"),
    ("bert", {"intermediate_size": 64}, "is not a decoder: its attention looks in both directions"),
    ("bart", _BART, "it ignores position_ids, or something besides attention mixes the rows"),
    ("doge", _GROUPED, "brings its own mask; only causal and sliding-window attention can be served"),
]


def refusal(model: nn.Module) -> str:
    """The error of a model that is not served: one line. The model is unchanged."""
    config = getattr(model, "config", None)
    before = getattr(config, "_attn_implementation", None)
    with pytest.raises(DecoderError) as caught:
        Decoder(model, num_pages=4)
    assert "\n" not in str(caught.value)
    assert getattr(config, "_attn_implementation", None) == before
    return str(caught.value)


@pytest.mark.parametrize(("kind", "changes", "reason"), REFUSED, ids=[kind for kind, *_ in REFUSED])
def test_model_types_that_cannot_be_served(kind: str, changes: dict[str, Any], reason: str) -> None:
    sizes = {} if kind == "gpt_neo" else {"num_hidden_layers": 2, "num_attention_heads": 4}
    config = AutoConfig.for_model(kind, **{**_SMALL, **sizes, **changes})
    error = refusal(AutoModelForCausalLM.from_config(config).eval())
    assert error.startswith(kind)
    assert reason in error


def test_what_is_no_causal_language_model() -> None:
    assert "expected a transformers causal language model, got Linear" in refusal(nn.Linear(2, 2))
    base = Qwen3Model(tiny("qwen3").config)
    assert "qwen3 (Qwen3Model) has no language-model head; load it as a causal LM" in refusal(base)
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=97, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=4))
    assert "t5 is not a decoder: it is an encoder-decoder model" in refusal(t5)
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(tiny("qwen3").config)
    assert "qwen3 must have all its weights on one device, got meta" in refusal(empty)


def test_unknown_keywords_raise() -> None:
    model = tiny("qwen3")

    def bias(_: nn.Module, args: tuple, keywords: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return args, {**keywords, "position_bias": torch.zeros(1)}

    model.model.layers[1].self_attn.register_forward_pre_hook(bias, with_kwargs=True)
    assert refusal(model) == "qwen3: attention call 1 passes keywords that we do not know: position_bias"


def test_tensors_that_do_not_fit_raise() -> None:
    model = tiny("qwen3")
    wide = model.model.layers[2].self_attn.v_proj.register_forward_hook(lambda *call: call[-1].double())
    assert "attention call 2 must have Q, K and V of one floating dtype, got torch.float32" in refusal(model)
    wide.remove()
    model.model.layers[2].self_attn.v_proj.register_forward_hook(lambda *call: call[-1].repeat(1, 1, 2))
    assert "Q, K, V are [1, 4, 6, 16], [1, 2, 6, 16], [1, 4, 6, 16]" in refusal(model)


def test_tokens_mixed_outside_attention_are_found_by_the_probe() -> None:
    """A token shift, as recurrent models have, is harmless in a batch of whole texts and wrong in a packed one."""
    model = tiny("qwen3")
    assert Decoder(model, num_pages=4).join_modes == ("exact", "append", "link")

    def shift(_: nn.Module, __: tuple, output: torch.Tensor) -> torch.Tensor:
        return output + 0.1 * output.roll(1, dims=1)

    model.model.layers[0].mlp.register_forward_hook(shift)
    assert "qwen3 gives other logits for branches packed into one step than for each alone" in refusal(model)


@pytest.mark.parametrize("changed", ["scaling", "sliding_window"])
def test_attention_told_other_values_than_eager_uses_is_found_by_the_probe(
    changed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny("mistral", sliding_window=4)
    value = {"scaling": 0.5, "sliding_window": 3}[changed]
    attend = Step.attend

    def wrong(self: Step, *args: Any) -> torch.Tensor:
        return attend(self, *args[:-1], {**args[-1], changed: value})

    monkeypatch.setattr(Step, "attend", wrong)
    assert "mistral gives other logits for branches packed into one step than for each alone" in refusal(model)


def test_keywords_dropped_or_refused_by_a_model_do_not_matter() -> None:
    """StableLM does not pass keywords to its layers; a forward without **kwargs accepts none."""
    assert Decoder(tiny("stablelm"), num_pages=4)._hooked.takes_step
    strict = tiny("qwen3")
    forward = strict.forward
    strict.forward = lambda input_ids, position_ids=None, use_cache=None, return_dict=None: forward(  # type: ignore[method-assign]
        input_ids=input_ids, position_ids=position_ids, use_cache=use_cache, return_dict=return_dict
    )
    decoder = Decoder(strict, num_pages=4)
    assert not decoder._hooked.takes_step
    assert not decoder._hooked.keeps_logits
    expected = Decoder(tiny("qwen3"), num_pages=4)
    logits = [d.forward(tokens(5, 1), d.cache.plan([(d.cache.root(), 5)]), [4, 1]) for d in (decoder, expected)]
    torch.testing.assert_close(*logits, rtol=1e-5, atol=1e-5)


def test_size_of_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("qwen3")
    page = 16 * 3 * 2 * 2 * 16 * 4  # tokens, layers, kv heads, K and V, head_dim, bytes
    assert Decoder(model, num_pages=5).cache.num_pages == 5
    decoder = Decoder(model, memory_bytes=10 * page - 1, page_size=16)
    assert decoder.cache.num_pages == decoder.storage.num_pages == 9
    monkeypatch.setattr(model_memory, "free_memory", lambda device: 80 * page)
    assert Decoder(model).cache.num_pages == 20
    monkeypatch.setattr(model_memory, "DEFAULT_TOKENS", 64)
    assert Decoder(model).cache.num_pages == 4
    with pytest.raises(ValueError, match=f"must hold a page of {page} bytes, got 100"):
        Decoder(model, memory_bytes=100)
    with pytest.raises(ValueError, match="num_pages or memory_bytes, got both"):
        Decoder(model, memory_bytes=10 * page, num_pages=3)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    tiny("qwen3", dtype=torch.bfloat16).save_pretrained(folder)
    return folder


def copied(saved: Path, to: Path) -> Path:
    for file in saved.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


def test_load(saved: Path) -> None:
    decoder = Decoder.load(saved, num_pages=4, dtype="bfloat16")
    assert decoder.storage.dtype == torch.bfloat16
    assert not decoder.model.training
    assert Decoder.load(str(saved), num_pages=4, dtype=torch.float32).storage.dtype == torch.float32


def broken(saved: Path, to: Path) -> Path:
    weights = copied(saved, to) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    return to


def incomplete(saved: Path, to: Path) -> Path:
    weights = copied(saved, to) / "model.safetensors"
    tensors = load_file(weights)
    save_file({k: v for k, v in tensors.items() if "layers.1.mlp.up" not in k}, weights, metadata={"format": "pt"})
    return to


def unknown(saved: Path, to: Path) -> Path:
    config = copied(saved, to) / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "model_type": "no_such_type"}))
    return to


def empty(saved: Path, to: Path) -> Path:
    return to


def absent(saved: Path, to: Path) -> Path:
    return to / "nowhere"


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (absent, "there is no such folder"),
        (empty, "the folder has no config.json"),
        (unknown, "no_such_type"),
        (broken, "cannot load a causal language model from"),
        (incomplete, "lacks 1 of its weights, the first is model.layers.1.mlp.up_proj.weight"),
    ],
)
def test_load_errors_are_one_clear_line(saved: Path, tmp_path: Path, spoil: Any, reason: str) -> None:
    path = spoil(saved, tmp_path)
    with pytest.raises(DecoderError, match=reason) as caught:
        Decoder.load(path, num_pages=4)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
