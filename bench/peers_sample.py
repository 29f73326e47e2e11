"""Who draws tokens otherwise: transformers' processors as `generate` runs them, and the least that torch needs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Draw:
    """logits [N, V] float32; temperature 0 takes the most likely token, top_k 0 and top_p 1 keep all."""

    logits: Tensor
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


def transformers_processors(x: Draw) -> Tensor:
    """Tokens [N], drawn as `generate(do_sample=True)` does it; greedy as `generate` does that."""
    from transformers.generation.logits_process import (
        LogitsProcessorList,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    if x.temperature == 0:
        return x.logits.argmax(-1)
    processors = LogitsProcessorList([TemperatureLogitsWarper(x.temperature)])
    if x.top_k:
        processors.append(TopKLogitsWarper(x.top_k))
    if x.top_p < 1:
        processors.append(TopPLogitsWarper(x.top_p))
    scores = processors(None, x.logits.clone())
    return torch.multinomial(scores.softmax(-1), 1)[:, 0]


def torch_draw(x: Draw) -> Tensor:
    """Tokens [N]: sorts no more than the setting asks for."""
    if x.temperature == 0:
        return x.logits.argmax(-1)
    scores = x.logits / x.temperature
    if x.top_k:
        values, ids = scores.topk(x.top_k)
    elif x.top_p < 1:
        values, ids = scores.sort(-1, descending=True)
    else:
        return torch.multinomial(scores.softmax(-1), 1)[:, 0]
    shares = values.softmax(-1)
    if x.top_p < 1:
        shares = shares.masked_fill(shares.cumsum(-1) - shares > x.top_p, 0.0)
    return ids.gather(1, torch.multinomial(shares, 1))[:, 0]
