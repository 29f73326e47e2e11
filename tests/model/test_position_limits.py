"""``Decoder.max_length``: contexts up to it have the model's own logits, one token more is refused by number."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from asyncthink.model.decoder import Decoder
from tiny_models import feed, same, tiny, tokens

_LONG = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 40,
         "short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "partial_rotary_factor": 0.5}  # fmt: skip
_DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
_FROM_PAD = {"max_position_embeddings": 42, "pad_token_id": 1, "is_decoder": True}

#: model type, changes of its config; each takes 40 positions.
LIMITED: list[tuple[str, dict[str, Any]]] = [
    ("gpt2", {"n_positions": 40, "max_position_embeddings": 40}),
    ("gpt_bigcode", {"n_positions": 40, "max_position_embeddings": 40}),
    ("opt", {"max_position_embeddings": 40, "ffn_dim": 64, "word_embed_proj_dim": 48}),
    ("biogpt", {"max_position_embeddings": 40}),
    ("bert", {"max_position_embeddings": 40, "is_decoder": True}),
    ("roberta", _FROM_PAD),
    ("camembert", _FROM_PAD),
    ("xlm-roberta", _FROM_PAD),
    ("xlm-roberta-xl", _FROM_PAD),
    ("roberta-prelayernorm", _FROM_PAD),
    ("data2vec-text", _FROM_PAD),
    ("xmod", {**_FROM_PAD, "default_language": "en_XX"}),
    ("phi3", {"rope_parameters": _LONG, "original_max_position_embeddings": 40}),
    ("llama", {"rope_parameters": _DYNAMIC, "max_position_embeddings": 40}),
]


def own_logits(model: nn.Module, context: Tensor) -> Tensor:
    """context [T] -> logits [T,V] of the model as its users call it."""
    with torch.no_grad():
        return model(input_ids=context[None]).logits[0].float()


@pytest.mark.parametrize(("family", "changes"), LIMITED, ids=[family for family, _ in LIMITED])
def test_contexts_up_to_the_limit_and_no_further(family: str, changes: dict[str, Any]) -> None:
    decoder = Decoder(tiny(family, **changes), page_size=4, num_pages=24)
    assert decoder.max_length == 40
    context, worker = tokens(41, 1), tokens(12, 2)
    expected = own_logits(decoder.model, context[:40])
    root = decoder.cache.root()
    (first,) = feed(decoder, (root, context[:28]))
    child = decoder.cache.fork(root)
    (second, forked) = feed(decoder, (root, context[28:39]), (child, worker))
    (last,) = feed(decoder, (root, context[39:40]))
    same(torch.cat([first, second, last]), expected)
    same(forked, own_logits(decoder.model, torch.cat([context[:28], worker]))[28:])

    before = [(group.k.clone(), group.v.clone()) for group in decoder.storage.groups]
    with pytest.raises(ValueError, match="takes 40 positions, got position 40"):
        feed(decoder, (root, context[40:]))
    for group, (k, v) in zip(decoder.storage.groups, before, strict=True):
        assert torch.equal(group.k.nan_to_num(7), k.nan_to_num(7))
        assert torch.equal(group.v.nan_to_num(7), v.nan_to_num(7))


@pytest.mark.parametrize("family", ["llama", "deepseek_v3", "yarn_rope"])
def test_computed_positions_have_no_limit(family: str) -> None:
    """RoPE goes on beyond max_position_embeddings, whether or not keys can be moved."""
    decoder = Decoder(tiny(family, max_position_embeddings=40), num_pages=8)
    assert decoder.max_length is None
    context = tokens(60, 1)
    same(feed(decoder, (decoder.cache.root(), context))[0], own_logits(decoder.model, context))


def test_a_padding_token_without_a_position_is_refused() -> None:
    decoder = Decoder(tiny("roberta", **_FROM_PAD), num_pages=4)
    with pytest.raises(ValueError, match=r"expected no padding, .* no position of its own, got 1"):
        feed(decoder, (decoder.cache.root(), torch.tensor([5, 1, 6])))
