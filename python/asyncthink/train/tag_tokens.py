"""Protocol tags as tokens of a pretrained model: one token a tag instead of four to eight pieces.

A tag then costs one step to write, and the text that a worker returns never shares a token with its tag, so an
``append`` or ``link`` join takes over all of it.
"""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import AddedToken
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from asyncthink.train.tokenizer import tags


@torch.no_grad()
def add_tag_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Make every tag that is not yet one token a token of the tokenizer and the model; returns those tags.

    The tags are those of up to eight workers. The new rows of the embedding, and of an output layer of its own, are the
    mean of the rows of the pieces that the tag had before, so the model goes on from what it knows. Rows beyond the
    tokenizer's vocabulary, which many models have, are used before new ones are added. Tokens are not special: they are
    text to a decoder, as the tags were.
    """
    pieces = {tag: tokenizer.encode(tag, add_special_tokens=False) for tag in tags()}
    new = {tag: ids for tag, ids in pieces.items() if len(ids) > 1}
    if not new:
        return []
    tokenizer.add_tokens([AddedToken(tag, normalized=False, special=False) for tag in new])
    decoder: Any = model
    if len(tokenizer) > decoder.get_input_embeddings().weight.shape[0]:
        decoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    added = [(int(tokenizer.convert_tokens_to_ids(tag)), old) for tag, old in new.items()]  # type: ignore[arg-type]
    for layer in _layers(decoder):
        for parameter in (layer.weight, getattr(layer, "bias", None)):
            if parameter is not None:
                _fill(parameter, added)
    return list(new)


def _layers(model: Any) -> list[Any]:
    """The embedding, and the output layer if it does not share the embedding's weight."""
    embedding, output = model.get_input_embeddings(), model.get_output_embeddings()
    return [embedding] if output is None or output.weight is embedding.weight else [embedding, output]


def _fill(rows: Tensor, new: list[tuple[int, list[int]]]) -> None:
    """Row = mean of the rows of its pieces, in float32."""
    for row, pieces in new:
        rows[row] = rows[pieces].float().mean(0).to(rows.dtype)
