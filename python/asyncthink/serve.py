"""A model loaded once, and samplers that share it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asyncthink.chat import prompts_for
from asyncthink.model import Decoder
from asyncthink.prompts import PromptFormat
from asyncthink.sampler import ForkJoinSampler


@dataclass(frozen=True, slots=True)
class Served:
    """A decoder with its tokenizer and prompts; every sampler made from it uses the same weights and K/V cache."""

    name: str
    decoder: Decoder
    tokenizer: Any
    prompts: PromptFormat

    @classmethod
    def load(cls, model: str | Path, **options: Any) -> Served:
        """From a folder or hub id; ``options`` are the decoder's. ValueError, one line, where it cannot be served."""
        from transformers import AutoTokenizer
        from transformers.utils import logging

        logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        decoder = Decoder.load(model, **options)
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(model))
        except (OSError, ValueError) as error:
            raise ValueError(f"cannot load a tokenizer from {model}: {str(error).splitlines()[0]}") from error
        return cls(Path(model).name, decoder, tokenizer, prompts_for(tokenizer, PromptFormat.find(model)))

    def sampler(self, **options: Any) -> ForkJoinSampler:
        """A sampler with ``mode``, ``pool``, ``context``, ``join`` of its own."""
        return ForkJoinSampler(self.decoder, self.tokenizer, prompts=self.prompts, **options)
