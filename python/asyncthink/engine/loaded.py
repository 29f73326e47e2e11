"""A model loaded once, and samplers that share it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from asyncthink.engine.sampler import ForkJoinSampler
from asyncthink.model.contract import BranchDecoder
from asyncthink.model.quantized import count_parameters
from asyncthink.protocol.prompts import PromptFormat


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A decoder with its tokenizer and prompts. All its samplers share the weights and the K/V cache.

    >>> from asyncthink import checkpoint_path
    >>> loaded = LoadedModel.load(checkpoint_path("countdown"), num_pages=64)
    >>> organized, alone = loaded.sampler(pool=3), loaded.sampler(mode="sequential")
    >>> organized.decoder is alone.decoder
    True
    """

    name: str
    decoder: BranchDecoder
    tokenizer: Any
    prompts: PromptFormat | None  # given or saved with the model; None: each sampler's default

    @classmethod
    def load(cls, model: str | Path, **options: Any) -> LoadedModel:
        """From a folder or hub id; ``options`` are :class:`ForkJoinSampler`'s arguments for the model and its cache.

        Raises ValueError, one line, if the model cannot be loaded or served.
        """
        sampler = ForkJoinSampler(model, **options)
        return cls(Path(model).name, sampler.decoder, sampler.tokenizer, sampler.own_prompts)

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return count_parameters(self.decoder.model)

    @property
    def machine(self) -> str:
        """The device that it runs on, for a report of seconds."""
        if self.decoder.device.type == "cuda":
            return torch.cuda.get_device_name(self.decoder.device)
        return f"CPU, {torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}"

    def sampler(self, **options: Any) -> ForkJoinSampler:
        """A sampler with its own ``mode``, ``pool``, ``context``, ``join``, ``guide``."""
        return ForkJoinSampler(self.decoder, self.tokenizer, prompts=self.prompts, **options)
