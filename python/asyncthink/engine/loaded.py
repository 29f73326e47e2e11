"""A model loaded once, and samplers that share it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asyncthink.engine.sampler import ForkJoinSampler
from asyncthink.model.decoder import Decoder
from asyncthink.protocol.prompts import PromptFormat


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A decoder with its tokenizer and prompts; every sampler made from it uses the same weights and K/V cache.

    >>> from asyncthink import checkpoint_path
    >>> loaded = LoadedModel.load(checkpoint_path("countdown"), num_pages=64)
    >>> organized, alone = loaded.sampler(pool=3), loaded.sampler(mode="sequential")
    >>> organized.decoder is alone.decoder
    True
    """

    name: str
    decoder: Decoder
    tokenizer: Any
    prompts: PromptFormat

    @classmethod
    def load(cls, model: str | Path, **options: Any) -> LoadedModel:
        """From a folder or hub id; ``options`` are those of :class:`ForkJoinSampler` about the model and its cache.

        Raises ValueError, one line, where the model cannot be loaded or served.
        """
        first = ForkJoinSampler(model, **options)
        return cls(Path(model).name, first.decoder, first.tokenizer, first.prompts)

    def sampler(self, **options: Any) -> ForkJoinSampler:
        """A sampler with ``mode``, ``pool``, ``context``, ``join`` of its own."""
        return ForkJoinSampler(self.decoder, self.tokenizer, prompts=self.prompts, **options)
