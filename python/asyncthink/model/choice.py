"""Which decoder a model gets: the paged one, or, where that refuses it, the fallback, with a warning."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from asyncthink.model.contract import BranchDecoder
from asyncthink.model.decoder import Decoder
from asyncthink.model.fallback import FallbackDecoder
from asyncthink.model.files import load_network
from asyncthink.model.hook import DecoderError
from asyncthink.model.quantized import check_choice

DECODERS = (Decoder, FallbackDecoder)
ModelSource = str | Path | nn.Module | BranchDecoder
"""What a sampler decodes with: a path or hub id, a live module, or a decoder."""

Progress = Callable[[str], None] | None


def decoder_for(
    model: nn.Module, *, fallback: bool | None = None, progress: Progress = None, **options: Any
) -> BranchDecoder:
    """A decoder for a live model: :class:`asyncthink.Decoder`; if that refuses it, :class:`.fallback.FallbackDecoder`.

    A RuntimeWarning names the model's type, the reason and what a fork copies. ``options`` are those of the decoder;
    the fallback has no ``chunk``, ``graphs``, ``compile``, ``weights``, ``lm_head``.

    Args:
        fallback: None: only where it is needed; False: never; True: always, without a warning.

    Raises:
        DecoderError: the model cannot be served, or not in this way.

    >>> from asyncthink.model.files import load_network
    >>> from asyncthink import checkpoint_path
    >>> model = load_network(checkpoint_path("countdown"), device="cpu", dtype="float32").model
    >>> type(decoder_for(model, num_pages=64)).__name__, type(decoder_for(model, num_pages=64, fallback=True)).__name__
    ('Decoder', 'FallbackDecoder')
    """
    return _choose(
        lambda: Decoder(model, progress=progress, **options),
        lambda: FallbackDecoder(model, progress=progress, **options),
        fallback,
    )


def load_decoder(
    path: str | Path,
    *,
    fallback: bool | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    weights: str | None = None,
    lm_head: str = "auto",
    progress: Progress = None,
    **options: Any,
) -> BranchDecoder:
    """:func:`decoder_for` the model at a local folder, in a GGUF file, or at a hub id.

    Other arguments are those of :meth:`asyncthink.Decoder.load`. DecoderError, one line, also for a path without a
    model, and weights that are missing or broken.
    """
    check_choice(weights, lm_head)
    network = load_network(path, revision=revision, device=device, dtype=dtype, progress=progress)
    options |= {"weights": weights, "lm_head": lm_head, "progress": progress}
    return _choose(lambda: Decoder.of(network, **options), lambda: FallbackDecoder.of(network, **options), fallback)


def _choose(fast: Callable[[], Decoder], slow: Callable[[], FallbackDecoder], fallback: bool | None) -> BranchDecoder:
    if fallback not in (None, True, False):
        raise ValueError(f"fallback: expected True, False or None, got {fallback!r}")
    if fallback:
        return slow()
    try:
        return fast()
    except DecoderError as error:
        if fallback is False:
            raise
        refusal = error
    try:
        decoder = slow()
    except DecoderError as error:
        if str(error) == str(refusal):
            raise
        raise DecoderError(f"{refusal}; and the fallback decoder cannot serve it: {error}") from error
    decoder.reason = str(refusal)
    warnings.warn(f"{decoder.reason}, so it runs on the fallback decoder: {decoder.cost}", RuntimeWarning, stacklevel=4)
    return decoder
