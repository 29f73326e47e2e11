"""transformers with a DynamicCache, as `generate` decodes a batch: the prefix's K and V once for each branch.

This is `generate`'s loop without its bookkeeping, which favours it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel


class HuggingFace:
    note = "transformers: a batch with a DynamicCache, the prefix copied to every branch (not timed), SDPA."

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.prefix: DynamicCache | None = None
        self.cache: DynamicCache | None = None

    @torch.inference_mode()
    def prefill(self, tokens: Sequence[int]) -> None:
        self.cache = None
        self.prefix = DynamicCache(config=self.model.config)
        self.model(torch.tensor([tokens]), past_key_values=self.prefix, use_cache=True, logits_to_keep=1)

    @torch.inference_mode()
    def branch(self, count: int) -> None:
        self.cache = copy.deepcopy(self.prefix)
        assert self.cache is not None
        self.cache.batch_repeat_interleave(count)

    @torch.inference_mode()
    def step(self, tokens: Sequence[int]) -> Sequence[Tensor]:
        ids = torch.tensor(tokens)[:, None]
        out = self.model(ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        return list(out.logits[:, -1])

    def close(self) -> None:
        self.prefix = self.cache = None
