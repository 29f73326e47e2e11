"""Quantized linear layers: nearly the same logits, bitwise so in any company; changes followed, weights given up."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from asyncthink.engine.sampler import ForkJoinSampler, SamplingParams
from asyncthink.model import quantized
from asyncthink.model.decoder import Decoder, DecoderError
from asyncthink.model.quantized import QuantizedLinear, QuantizedLinears, count_parameters
from scripted import tokenizer
from tiny_models import VOCABULARY, eager, feed, tiny, tokens

SIZES: dict[str, Any] = {"page_size": 4, "num_pages": 60, "chunk": 8}
#: Relative difference of logits of tiny random models, whose errors do not average out as a large model's do.
NEAR = {"int8": 0.1, "int4": 0.6}


def apart(got: Tensor, expected: Tensor) -> float:
    return float((got.float() - expected).norm() / expected.norm())


def rounded(model: nn.Module, decoder: Decoder) -> nn.Module:
    """The model with the weights that the decoder's layers hold, in torch's own layers."""
    twin = copy.deepcopy(model)
    assert isinstance(decoder.linears, QuantizedLinears)
    for name, layer in zip(decoder.linears.names, decoder.linears.layers, strict=True):
        target: Any = twin.get_submodule(name)
        target.weight = nn.Parameter(layer.held.dequantized(target.weight.dtype))
    return twin


@pytest.mark.parametrize("weights", sorted(NEAR))
@pytest.mark.parametrize("family", ["qwen3", "llama", "phi3", "gemma2"])  # an expert may be changed by rounding
def test_logits_are_near_those_of_the_model(family: str, weights: str) -> None:
    model = tiny(family)
    decoder = Decoder(model, weights=weights, **SIZES)
    decoder.storage.poison()
    trunk, worker = tokens(13, 1), tokens(6, 2)
    root = decoder.cache.root()
    (first,) = feed(decoder, (root, trunk))
    (second,) = feed(decoder, (decoder.cache.fork(root, at=9), worker))
    alone = [eager(model, trunk), eager(model, torch.cat([trunk[:9], worker]))[9:]]
    assert apart(torch.cat([first, second]), torch.cat(alone)) < NEAR[weights]
    twin = rounded(model, decoder)
    held = [eager(twin, trunk), eager(twin, torch.cat([trunk[:9], worker]))[9:]]
    assert apart(torch.cat([first, second]), torch.cat(held)) < NEAR["int8"]  # what 8 bits of activations take
    assert not [name for name, module in model.named_modules() if "forward" in module.__dict__]


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
def test_logits_are_bitwise_the_same_in_any_company(precision: torch.dtype) -> None:
    """Linear layers, too: a branch alone, beside others, and in a prefill of other sizes."""
    decoder = Decoder(tiny("qwen3", dtype=precision), weights="int8", **SIZES)
    trunk, more = tokens(12, 1), tokens(9, 2)
    alone = decoder.cache.root()
    whole = feed(decoder, (alone, trunk))[0]
    parts = decoder.cache.root()
    assert torch.equal(torch.cat([feed(decoder, (parts, part))[0] for part in trunk.split((8, 1, 3))]), whole)
    beside = [decoder.cache.root() for _ in range(9)]
    company = feed(decoder, (beside[0], trunk), *((branch, more[: 1 + k]) for k, branch in enumerate(beside[1:])))
    assert torch.equal(company[0], whole)


def test_a_loaded_model_gives_its_own_weights_up(tmp_path: Path) -> None:
    model = tiny("llama", dtype=torch.bfloat16)
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    live = Decoder(model, weights="int8", **SIZES)
    loaded = Decoder.load(tmp_path, device="cpu", dtype="bfloat16", weights="int8", **SIZES)
    assert isinstance(loaded.linears, QuantizedLinears) and isinstance(live.linears, QuantizedLinears)
    assert not [name for name, module in loaded.model.named_modules() if type(module) is nn.Linear]
    assert count_parameters(loaded.model) == count_parameters(model)
    assert loaded.linears.replaced and not live.linears.replaced
    assert loaded.linears.nbytes == sum(b.nbytes for m in loaded.model.modules() for b in held(m))
    trunk = tokens(10, 1)
    got = [feed(each, (each.cache.root(), trunk))[0] for each in (live, loaded)]
    assert torch.equal(*got)
    again = Decoder(loaded.model, **SIZES)  # another decoder on the same layers
    assert torch.equal(feed(again, (again.cache.root(), trunk))[0], got[0])
    loaded.refresh()
    assert torch.equal(feed(loaded, (loaded.cache.root(), trunk))[0], got[0])


def held(module: nn.Module) -> list[Tensor]:
    return [part for part in module.held[:3] if part is not None] if isinstance(module, QuantizedLinear) else []


@pytest.mark.parametrize(("lm_head", "form"), [("auto", 8), ("int8", 8), ("int4", 4), ("stored", None)])
def test_the_last_layer_is_held_as_asked(lm_head: str, form: int | None) -> None:
    decoder = Decoder(tiny("llama"), weights="int4", lm_head=lm_head, **SIZES)
    assert isinstance(decoder.linears, QuantizedLinears)
    bits = dict(zip(decoder.linears.names, (layer.held.bits for layer in decoder.linears.layers), strict=True))
    assert bits.pop("lm_head", None) == form
    assert set(bits.values()) == {4}
    feed(decoder, (decoder.cache.root(), tokens(3, 1)))


def test_changes_are_followed() -> None:
    model, trunk = tiny("qwen2"), tokens(9, 3)  # its linear layers have biases
    decoder = Decoder(model, weights="int8", **SIZES)
    before = feed(decoder, (decoder.cache.root(), trunk))[0]

    def fresh() -> None:
        nonlocal before
        now = feed(decoder, (decoder.cache.root(), trunk))[0]
        assert apart(now, eager(model, trunk)) < NEAR["int8"] and not torch.equal(now, before)
        before = now

    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    model(trunk[None]).logits.square().mean().backward()
    optimizer.step()
    fresh()
    model.load_state_dict({name: value * 0.9 for name, value in model.state_dict().items()})
    fresh()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("proj.bias"):
                parameter += 0.3
    fresh()
    for parameter in model.parameters():
        parameter.data.mul_(1.1)  # torch does not count it
    decoder.refresh()
    fresh()


@pytest.mark.slow
def test_compiled_passes_see_changed_weights_and_compile_nothing_again() -> None:
    torch._dynamo.reset()
    model, trunk = tiny("qwen3", num_hidden_layers=1), tokens(9, 3)
    decoder = Decoder(model, weights="int4", compile="aot_eager", **SIZES)
    plain = Decoder(model, weights="int4", **SIZES)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for _ in range(3):
            branch, other = decoder.cache.root(), plain.cache.root()
            for part in (trunk[:6], trunk[6:7]):
                assert apart(feed(decoder, (branch, part))[0], feed(plain, (other, part))[0]) < 1e-5
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(1.2)


def test_steps_from_static_buffers(tmp_path: Path) -> None:
    tiny("llama").save_pretrained(tmp_path)  # type: ignore[operator]
    eager_steps = Decoder.load(tmp_path, device="cpu", weights="int8", **SIZES)
    static = Decoder.load(tmp_path, device="cpu", weights="int8", graphs=True, **SIZES)
    for each in (eager_steps, static):
        each.root = each.cache.root()  # type: ignore[attr-defined]
        feed(each, (each.root, tokens(7, 1)))  # type: ignore[attr-defined]
    steps = [feed(each, (each.root, tokens(1, 2)))[0] for each in (eager_steps, static)]  # type: ignore[attr-defined]
    assert torch.equal(*steps)


def test_routers_and_small_layers_stay() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.up = nn.Linear(64, 64), nn.Linear(64, 64)
            self.adapter, self.head = nn.Linear(64, 8), nn.Linear(64, 96)

        def get_output_embeddings(self) -> nn.Module:
            return self.head

    model = Model()
    linears = QuantizedLinears(model, "int4")
    assert linears.names == ["up", "head"]
    x = torch.randn(2, 64)
    want = linears.layers[0](x)
    linears.replace(model)
    assert torch.equal(model.up(x), want) and type(model.gate) is nn.Linear
    assert "in_features=64, out_features=96, 8 bits" in repr(model.head)


def test_experts_and_their_routers_stay() -> None:
    decoder = Decoder(tiny("qwen3_moe"), weights="int8", **SIZES)
    assert isinstance(decoder.linears, QuantizedLinears)
    assert {name.rpartition(".")[2] for name in decoder.linears.names} == {
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "lm_head",
    }
    assert feed(decoder, (decoder.cache.root(), tokens(5, 1)))[0].isfinite().all()


def test_what_cannot_be_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama")
    for changes, error, message in (
        ({"weights": "int3"}, ValueError, "weights: expected int8 or int4, got 'int3'"),
        ({"weights": "int8", "lm_head": "int2"}, ValueError, "lm_head: expected one of auto, int8, int4, stored"),
        ({"lm_head": "int8"}, ValueError, "lm_head: expected 'auto' where weights are not quantized"),
        ({"weights": "int8", "pack": True}, ValueError, "pack: expected None or False beside weights='int8'"),
    ):
        with pytest.raises(error, match=message):
            Decoder(model, **changes, **SIZES)
    with pytest.raises(DecoderError, match=r"weights='int8': expected float32, .* got float64"):
        Decoder(tiny("llama").double(), weights="int8", **SIZES)
    model.config.quantization_config = {"quant_method": "gptq", "bits": 4}
    with pytest.raises(DecoderError, match="weights='int4': the weights were quantized before, by gptq"):
        Decoder(model, weights="int4", **SIZES)
    del model.config.quantization_config
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = torch.nan
    with pytest.raises(DecoderError, match=r"model\.layers\.1\.mlp\.up_proj: weight: expected finite numbers"):
        QuantizedLinears(model, "int8")


def test_a_wrong_kernel_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    right = quantized.run_quantized_linear
    monkeypatch.setattr(quantized, "run_quantized_linear", lambda x, weight, bias: 1.1 * right(x, weight, bias))
    with pytest.raises(DecoderError, match=r"quantized weights \[.*\] give other values than F\.linear"):
        Decoder(tiny("llama"), weights="int8", **SIZES)


def test_explain() -> None:
    decoder = Decoder(tiny("llama"), weights="int4", **SIZES)
    told = decoder.explain()
    assert told["weights"].startswith("int4: 22 linear layers in 8 bits with scale and 4 bits with scale and offset")
    assert told["pack"] == "no: linear layers run on quantized weights"
    assert Decoder(tiny("llama"), **SIZES).explain()["weights"] == "as they are stored"


def test_a_sampler_runs_on_them() -> None:
    model = tiny("llama")
    sampler = ForkJoinSampler(model, tokenizer(), weights="int8", num_pages=300, mode="sequential")
    (first,) = sampler.generate(["1"], SamplingParams(max_tokens=5, seed=3))
    assert len(first.traces[0].tokens) and sampler.explain()["weights"].startswith("int8: ")
    with pytest.raises(ValueError, match=r"weights: expected none beside a Decoder, which has its own"):
        ForkJoinSampler(sampler.decoder, tokenizer(), weights="int8")
    assert model.get_output_embeddings().weight.shape[0] == VOCABULARY
