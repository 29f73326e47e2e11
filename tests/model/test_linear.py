"""Packed linear layers: the same logits, changed weights are packed again, and the model is restored."""

from __future__ import annotations

import gc
import warnings
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from asyncthink.model import linear
from asyncthink.model.decoder import Decoder, DecoderError
from asyncthink.model.linear import PackedLinears
from tiny_models import FAMILIES, eager, feed, same, tiny, tokens

SIZES = {"page_size": 4, "num_pages": 60, "chunk": 8}


def plain(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(48, 80), nn.GELU(), nn.Linear(80, 33, bias=False)).to(dtype)


def traces(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if "forward" in module.__dict__]


@torch.inference_mode()
def run(linears: PackedLinears, model: nn.Module, x: Tensor) -> Tensor:
    with linears.patched():
        result: Tensor = model(x)
    return result


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gives_eagers_logits(family: str) -> None:
    model = tiny(family)
    decoder = Decoder(model, pack=True, **SIZES)
    decoder.storage.poison()
    assert decoder.linears is not None and "pack" not in decoder.unavailable
    assert decoder.linears.nbytes == sum(m.weight.nbytes for m in model.modules() if type(m) is nn.Linear)
    trunk, worker = tokens(13, 1), tokens(6, 2)
    root = decoder.cache.root()
    (first,) = feed(decoder, (root, trunk))
    child = decoder.cache.fork(root, at=9)
    (second,) = feed(decoder, (child, worker))
    same(first, eager(model, trunk))
    same(second, eager(model, torch.cat([trunk[:9], worker]))[9:])
    assert traces(model) == []


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows", [0, 1, 5, 70, 300])
def test_rows(precision: torch.dtype, rows: int) -> None:
    model = plain(dtype=precision)
    x = torch.randn(1, rows, 48).to(precision)
    got, expected = run(PackedLinears(model), model, x), model.double()(x.double())
    assert got.shape == expected.shape and got.dtype == precision
    if rows:
        error = (got.double() - expected).norm() / expected.norm()
        assert error < (1e-6 if precision == torch.float32 else 1e-2)


def test_changes_are_followed() -> None:
    model, x = plain(), torch.randn(3, 48)
    linears = PackedLinears(model)
    before = run(linears, model, x)
    first: Any = model[0]

    def fresh() -> None:
        """What comes out is what these weights give, and not what was."""
        now = run(linears, model, x)
        torch.testing.assert_close(now, model(x).detach(), rtol=1e-5, atol=1e-5)
        assert not torch.allclose(now, before)

    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(x).square().sum().backward()
    optimizer.step()
    fresh()
    model.load_state_dict(plain(1).state_dict())
    fresh()
    first.weight = nn.Parameter(torch.randn(80, 48))
    fresh()
    first.bias.data.add_(1)  # a bias is read in every call
    fresh()


def test_what_torch_does_not_count_needs_forget() -> None:
    model, x = plain(), torch.randn(3, 48)
    linears = PackedLinears(model)
    before = run(linears, model, x)
    model[0].weight.data.mul_(2)  # type: ignore[operator, union-attr]
    assert torch.equal(run(linears, model, x), before)
    linears.forget()
    torch.testing.assert_close(run(linears, model, x), model(x).detach(), rtol=1e-5, atol=1e-5)


def test_refresh_of_a_decoder_forgets() -> None:
    model, trunk = tiny("qwen3"), tokens(9, 3)
    decoder = Decoder(model, pack=True, **SIZES)
    feed(decoder, (decoder.cache.root(), trunk))
    for parameter in model.parameters():
        parameter.data.mul_(1.5)
    decoder.refresh()
    same(feed(decoder, (decoder.cache.root(), trunk))[0], eager(model, trunk))


def test_no_trace_is_left_even_by_an_error() -> None:
    model = plain()
    linears = PackedLinears(model)
    with pytest.raises(ValueError, match="packed"):
        run(linears, model, torch.randn(3, 47))
    assert traces(model) == []
    model(torch.randn(2, 48)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_what_others_put_into_a_layer_stays() -> None:
    """A forward that a library set on the instance is kept, and so is a layer whose weight is computed."""
    model, x = plain(), torch.randn(3, 48)
    linears = PackedLinears(model)
    own = model[0].forward
    model[0].forward = lambda x: own(x) + 1  # type: ignore[method-assign, operator, assignment]
    torch.testing.assert_close(run(linears, model, x), model(x).detach(), rtol=1e-5, atol=1e-5)
    assert traces(model) == ["0"]

    class Doubled(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 2 * weight

    parametrize.register_parametrization(model[2], "weight", Doubled())  # type: ignore[arg-type]
    torch.testing.assert_close(run(linears, model, x), model(x).detach(), rtol=1e-5, atol=1e-5)


def test_autocast_is_obeyed() -> None:
    model, x = plain(), torch.randn(3, 48)
    linears = PackedLinears(model)
    with torch.inference_mode(), linears.patched(), torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(model(x)).all()


@pytest.mark.parametrize("precision", [torch.float16, torch.float64], ids=str)
def test_other_dtypes_are_refused(precision: torch.dtype) -> None:
    model = tiny("llama").to(precision)
    with pytest.raises(DecoderError, match=r"pack=True: weights are packed in float32 and bfloat16, these are float"):
        Decoder(model, pack=True, **SIZES)


def test_compiled_passes_see_changed_weights_and_compile_nothing_again() -> None:
    torch._dynamo.reset()
    model, trunk = tiny("qwen3", num_hidden_layers=1), tokens(9, 3)
    decoder = Decoder(model, pack=True, compile="aot_eager", **SIZES)
    plain = Decoder(model, pack=True, **SIZES)
    assert decoder.linears is not None and decoder.compiled and not plain.compiled
    with torch._dynamo.config.patch(error_on_recompile=True):
        for turn in range(3):
            branch = decoder.cache.root()
            got = feed(decoder, (branch, trunk[:6]))[0], feed(decoder, (branch, trunk[6:7]))[0]
            assert torch.equal(got[0], feed(plain, (plain.cache.root(), trunk[:6]))[0])
            same(torch.cat(got), eager(model, trunk[:7]))
            assert decoder.forward(trunk[7:], decoder.cache.plan([(branch, 2)]), []).shape[0] == 0
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(1.2) if turn else parameter.data.mul_(0.9)
            if not turn:
                decoder.refresh()
    assert traces(model) == []


def test_decoders_share_the_packed_weights_of_a_model() -> None:
    model = tiny("llama")
    first = Decoder(model, pack=True, **SIZES)
    assert Decoder(model, pack=True, **SIZES).linears is first.linears
    model.model.layers[0].mlp.add_module("more", nn.Linear(4, 4))
    second = Decoder(model, pack=True, **SIZES)
    assert second.linears is not first.linears
    feed(second, (second.cache.root(), tokens(5, 1)))
    held = weakref.ref(second.linears)
    del second
    gc.collect()
    assert held() is None  # what nobody uses is given back


def test_the_default_packs_large_models_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama")
    small = Decoder(model, **SIZES)
    assert small.linears is None and "stay in the caches" in small.unavailable["pack"]
    assert "pack" not in Decoder(model, pack=False, **SIZES).unavailable

    monkeypatch.setattr(linear, "LEAST_BYTES", 1)
    large = Decoder(model, **SIZES)
    assert large.linears is not None and "pack" not in large.unavailable
    assert Decoder(model, pack=False, **SIZES).linears is None

    monkeypatch.setattr(linear, "free_memory", lambda device: 1000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Decoder(model, **SIZES).linears is large.linears  # which takes nothing more
        del large
        gc.collect()
        full = Decoder(model, **SIZES)
    assert full.linears is None and "packed weights would take" in full.unavailable["pack"]


def test_models_without_layers_to_pack() -> None:
    with pytest.raises(DecoderError, match="no linear layers"):
        PackedLinears(nn.LayerNorm(4))
    layers = PackedLinears(nn.Sequential(nn.Linear(3, 5), nn.Linear(4, 5)).bfloat16())
    assert len(layers._modules) == 1  # bfloat16 inputs come in pairs
