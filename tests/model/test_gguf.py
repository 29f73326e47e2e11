"""GGUF files: transformers reads them, blocks of 8 and 4 bits are kept, tokenizer and template come along."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from asyncthink.engine.sampler import ForkJoinSampler, SamplingParams
from asyncthink.model.decoder import Decoder, DecoderError
from asyncthink.model.files import load_network, load_tokenizer
from asyncthink.model.quantized import QuantizedLinears
from tiny_models import eager, feed, tiny, tokens

gguf = pytest.importorskip("gguf", reason='needs "asyncthink-kernels[gguf]"')
sys.path.append(str(Path(__file__).resolve().parents[2] / "bench"))

from gguf_files import write_gguf  # noqa: E402

SIZES: dict[str, Any] = {"page_size": 4, "num_pages": 300, "chunk": 8}
CHANGES = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16, "vocab_size": 60, "num_hidden_layers": 2}
TEMPLATE = "{% for m in messages %}{{ m['role'] }}:{{ m['content'] }};{% endfor %}"


def add_tokenizer(writer: Any) -> None:
    """Letters, digits and two merges, in a vocabulary of the model's size."""
    size = CHANGES["vocab_size"]
    writer.add_name("tiny")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    letters = [*map(chr, range(ord("a"), ord("z") + 1)), *"0123456789", *":;,.Ġ+-=", "ab", "cd"]
    writer.add_token_list([*letters, *(f"<{k}>" for k in range(size - len(letters)))])
    writer.add_token_types([1] * len(letters) + [3] * (size - len(letters)))
    writer.add_token_merges(["a b", "c d"])
    writer.add_bos_token_id(size - 3)
    writer.add_eos_token_id(size - 2)
    writer.add_chat_template(TEMPLATE)


def write(path: Path, model: Any, kinds: dict[str, str], default: str) -> None:
    """A model with its tokenizer; ``kinds`` by the stem of a tensor's name."""
    write_gguf(model, path, lambda stem: kinds.get(stem, default), add_tokenizer)


def tiny_llama() -> nn.Module:
    return tiny("llama", **CHANGES)


def compared(decoder: Decoder, model: nn.Module, trunk: Tensor) -> float:
    got, want = feed(decoder, (decoder.cache.root(), trunk))[0].float(), eager(model, trunk)
    return float((got - want).norm() / want.norm())


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1"])
def test_blocks_are_kept_as_they_are(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write(path, tiny_llama(), {"output": "Q8_0"}, kind)
    network = load_network(path, device="cpu", dtype="float32")
    linears = [name for name, module in network.model.named_modules() if type(module) is nn.Linear]
    assert set(network.quantized) == set(linears)
    for name, weight in network.quantized.items():
        layer: Any = network.model.get_submodule(name)
        assert torch.equal(weight.dequantized(), layer.weight.detach())
    decoder = Decoder.load(path, device="cpu", dtype="float32", **SIZES)
    assert isinstance(decoder.linears, QuantizedLinears) and decoder.linears.replaced
    assert f"kept as the file has them: {len(linears) - 1 + (kind == 'Q8_0')} of {kind}" in decoder.explain()["dtype"]
    assert compared(decoder, network.model, tokens(9, 1) % 50) < 0.04


def test_other_blocks_are_widened_and_said_so(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write(path, tiny_llama(), {"ffn_down": "Q5_0", "output": "F16"}, "Q8_0")
    decoder = Decoder.load(path, device="cpu", **SIZES)
    assert decoder.explain()["dtype"].endswith("as the file has them: 12 of Q8_0; widened: 2 of Q5_0")
    assert isinstance(decoder.linears, QuantizedLinears)
    assert decoder.explain()["weights"].startswith("as in the file: 12 linear layers in 8 bits with scale")
    smaller = Decoder.load(path, device="cpu", weights="int4", **SIZES)
    assert isinstance(smaller.linears, QuantizedLinears)
    bits = dict(zip(smaller.linears.names, (layer.held.bits for layer in smaller.linears.layers), strict=True))
    assert bits["model.layers.0.mlp.down_proj"] == 4 and bits["model.layers.0.mlp.up_proj"] == 8
    assert bits["lm_head"] == 8


def test_a_wide_file_keeps_its_dtype(tmp_path: Path) -> None:
    model = tiny_llama()
    write(tmp_path / "wide.gguf", model, {}, "F32")
    decoder = Decoder.load(tmp_path / "wide.gguf", device="cpu", **SIZES)
    assert decoder.storage.dtype == torch.float32 and not isinstance(decoder.linears, QuantizedLinears)
    assert compared(decoder, model, tokens(9, 1) % 50) < 1e-4


def test_tokenizer_template_and_sampler_from_one_file(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write(path, tiny_llama(), {}, "Q8_0")
    tokenizer = load_tokenizer(path)
    assert tokenizer.chat_template == TEMPLATE
    assert tokenizer.convert_ids_to_tokens(tokenizer("abc")["input_ids"])[-2:] == ["ab", "c"]
    sampler = ForkJoinSampler(path, mode="sequential", answer="text", device="cpu", num_pages=300)
    (episode,) = sampler.generate(["ab"], SamplingParams(max_tokens=4))
    assert episode.traces[0].tokens
    assert "template" in sampler.explain()["prompts"]


def test_what_is_no_model_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(DecoderError, match="there is no such file"):
        Decoder.load(tmp_path / "none.gguf", device="cpu")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF but no more")
    with pytest.raises(DecoderError, match=r"cannot load a causal language model from .*broken\.gguf: ") as error:
        Decoder.load(tmp_path / "broken.gguf", device="cpu")
    assert "\n" not in str(error.value)
    write(tmp_path / "tiny.gguf", tiny_llama(), {}, "Q8_0")
    with pytest.raises(ValueError, match="revision: expected none for a local file"):
        Decoder.load(tmp_path / "tiny.gguf", device="cpu", revision="main")
