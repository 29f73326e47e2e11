"""Windows are read from the masks of the layers, positions from the tables that the model indexes."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.masking_utils import (
    and_masks,
    causal_mask_function,
    chunked_causal_mask_function,
    sliding_window_causal_mask_function,
    sliding_window_overlay,
)
from transformers.models.qwen3 import modeling_qwen3

from asyncthink.model.checks import probe_tokens
from asyncthink.model.decoder import Decoder, DecoderError
from asyncthink.model.watch import Mask, WatchedTables
from tiny_models import feed, same, tiny, tokens

SIZES = st.integers(1, 1 << 20)


def mask(sees: Callable[..., Tensor], local_size: int | None = None) -> Mask:
    return Mask(torch.zeros(1, 1, 6, 6), sees, local_size)


@given(window=SIZES, other=SIZES, local_size=st.none() | SIZES)
def test_a_window_is_found_whatever_its_size(window: int, other: int, local_size: int | None) -> None:
    built = mask(sliding_window_causal_mask_function(window), local_size)
    assert built.is_window(window)
    assert not built.is_window(None)
    assert built.is_window(other) == (other == window)
    for near in (window - 1, window + 1):
        assert not built.is_window(near)


@given(window=SIZES)
def test_a_causal_mask_has_no_window(window: int) -> None:
    assert mask(causal_mask_function).is_window(None)
    assert not mask(causal_mask_function, window).is_window(window)


@given(chunk=SIZES, other=st.none() | st.integers(2, 1 << 20))
def test_chunks_are_no_window(chunk: int, other: int | None) -> None:
    """Except for a window of one token, in which a token sees itself alone: so ``other`` is at least 2."""
    built = mask(chunked_causal_mask_function(chunk, torch.zeros(1, dtype=torch.int64)), chunk)
    assert not built.is_window(other)


@pytest.mark.parametrize(("kind", "differs"), [(0, 0), (1, 3)])
def test_a_rule_over_the_tokens_of_a_pass_is_asked_about_them(kind: int, differs: int) -> None:
    blocks = torch.tensor([[0, 0, 0, differs, kind, kind]])

    def same_block(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return blocks[batch, query] == blocks[batch, key]

    assert mask(and_masks(causal_mask_function, same_block)).is_window(None) == (kind == differs == 0)


def test_tables_of_positions() -> None:
    """Neither the table of embeddings, nor rows selected from hidden states, nor another order of positions."""
    words, places, short = nn.Embedding(50, 4), nn.Embedding(40, 4), torch.zeros(6, 4)
    with torch.inference_mode(), WatchedTables(6) as tables:
        words(torch.tensor([[9, 4, 30, 2, 11, 5]]))
        places(torch.arange(3, 9))
        places.weight.index_select(0, torch.arange(2, 8))
        places.weight[torch.tensor([0, 2, 1, 3, 4, 5])]
        short[torch.arange(6)]
    assert tables.positions(range(6)) == {(40, 3), (40, 2)}


def test_a_probe_has_no_special_tokens() -> None:
    model = tiny("qwen3", pad_token_id=37, eos_token_id=[42, 47], bos_token_id=32)
    ids = probe_tokens(model, 9)
    assert len(set(ids)) == 9
    assert not {37, 42, 47, 32} & set(ids)
    assert all(abs(b - a) > 1 for a, b in itertools.pairwise(ids))


_FULL = {"layer_types": ["full_attention"] * 3}
_EXPERTS = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
}
_LLAMA4 = {"intermediate_size_mlp": 64, "num_local_experts": 4, "attention_chunk_size": 5}
_WHISPER = {
    "d_model": 48, "decoder_layers": 2, "encoder_layers": 2, "decoder_attention_heads": 4, "encoder_attention_heads": 4,
    "decoder_ffn_dim": 64, "encoder_ffn_dim": 64, "is_decoder": True,
}  # fmt: skip

#: What builds masks that no layer uses, or has no table of layer types.
UNUSED: list[tuple[str, dict[str, Any]]] = [
    ("qwen2_moe", _EXPERTS),
    ("gpt_oss", _FULL),
    ("gemma2", _FULL),
    ("gemma3", _FULL),
    ("olmo3", _FULL),
    ("cohere2", _FULL),
    ("llama4_text", {**_FULL, **_LLAMA4}),
    ("whisper", _WHISPER),
]


@pytest.mark.parametrize(("family", "changes"), UNUSED, ids=[family for family, _ in UNUSED])
def test_windows_that_no_layer_uses_do_not_matter(family: str, changes: dict[str, Any]) -> None:
    decoder = Decoder(tiny(family, **changes), page_size=4, num_pages=16)
    trunk, worker = tokens(14, 1), tokens(6, 2)
    root = decoder.cache.root()
    (first,) = feed(decoder, (root, trunk))
    (forked,) = feed(decoder, (decoder.cache.fork(root, at=11), worker))
    model: Any = decoder.model
    model.set_attn_implementation("eager")  # SDPA, the default of transformers 5.20, leaves out Gemma 2's softcap
    with torch.no_grad():
        own, other = (model(input_ids=text[None]).logits[0] for text in (trunk, torch.cat([trunk[:11], worker])))
    same(first, own)
    same(forked, other[11:])


def refusal(model: nn.Module) -> str:
    with pytest.raises(DecoderError) as caught:
        Decoder(model, num_pages=4)
    return str(caught.value)


@pytest.mark.parametrize("window", [4, 4096, 200_000])
def test_a_window_that_attention_is_not_told_is_refused_however_long(window: int) -> None:
    model = tiny("phimoe", sliding_window=window, num_local_experts=4, num_experts_per_tok=2)
    reason = f"phimoe masks a sliding window of {window} tokens without telling its attention, in layer 0"
    assert refusal(model) == reason


def test_layers_may_slide_by_turns_but_must_say_so() -> None:
    model = tiny("gemma3")
    assert Decoder(model, num_pages=4)
    model.model.layers[2].self_attn.sliding_window = None
    assert "masks a sliding window of 7 tokens without telling its attention, in layer 2" in refusal(model)
    model.model.layers[2].self_attn.sliding_window = 7
    model.model.layers[1].self_attn.sliding_window = 7
    assert "gemma3_text masks no window but tells its attention 7, in layer 1" in refusal(model)


def test_a_rule_laid_over_a_causal_mask_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    build = modeling_qwen3.create_causal_mask

    def overlaid(*args: Any, **given: Any) -> Tensor | None:
        return build(*args, **given, and_mask_function=sliding_window_overlay(1000))

    monkeypatch.setattr(modeling_qwen3, "create_causal_mask", overlaid)
    assert "qwen3 masks by a rule that is neither causal nor a sliding window, in layer 0" in refusal(tiny("qwen3"))


def test_progress_is_told_in_order() -> None:
    said: list[str] = []
    Decoder(tiny("qwen3"), num_pages=4, progress=said.append)
    assert said[0] == "checking the model"
    assert len(said) == len(set(said)) >= 3
