"""Tags as tokens of a model that knows none of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from asyncthink.protocol.codec import Codec
from asyncthink.train.tag_tokens import add_tag_tokens
from asyncthink.train.tokenizer import build_tokenizer, tags
from tiny_models import tiny
from toy_tokenizers import KINDS, byte_level


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("spare", [0, 50])
def test_new_rows_are_means_of_the_pieces(tied: bool, spare: int) -> None:
    tokenizer = byte_level()
    model: Any = tiny("qwen3", vocab_size=len(tokenizer) + spare, tie_word_embeddings=tied)
    pieces = {tag: tokenizer.encode(tag, add_special_tokens=False) for tag in tags()}
    layers = [model.get_input_embeddings()] + [model.get_output_embeddings()] * (not tied)
    before = [layer.weight.detach().clone() for layer in layers]
    assert add_tag_tokens(model, tokenizer) == tags()
    layers = [model.get_input_embeddings()] + [model.get_output_embeddings()] * (not tied)
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied
    for layer, old in zip(layers, before, strict=True):
        assert len(layer.weight) == max(len(tokenizer), len(old)) == model.config.vocab_size
        for tag, ids in pieces.items():
            assert len(ids) > 1
            (new,) = tokenizer.encode(tag, add_special_tokens=False)
            torch.testing.assert_close(layer.weight[new], old[ids].mean(0))
        text = len(tokenizer) - len(tags())
        assert torch.equal(layer.weight[:text], old[:text])
    assert add_tag_tokens(model, tokenizer) == []


@pytest.mark.parametrize("kind", ["byte-level", "byte-level, merged", "legacy", "metaspace first"])
def test_text_and_tags_survive(kind: str) -> None:
    tokenizer = KINDS[kind]()
    model: Any = tiny("qwen3", vocab_size=len(tokenizer))
    add_tag_tokens(model, tokenizer)
    codec = Codec(tokenizer)
    text = "so<FORK-1>42 is</FORK-1><JOIN-1>x</JOIN-1> y <RETURN> 7</RETURN>"
    ids = codec.encode([(text, True)], continues=True)
    assert codec.decode(ids).lstrip() == text
    assert sum(codec.alone(token).strip() in tags() for token in ids) == 6


def test_a_tokenizer_that_has_them_is_left_alone() -> None:
    tokenizer = build_tokenizer()
    model: Any = tiny("qwen3", vocab_size=len(tokenizer))
    assert add_tag_tokens(model, tokenizer) == []
    assert model.config.vocab_size == len(tokenizer)
