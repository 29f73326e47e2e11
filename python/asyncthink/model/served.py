"""What the decoders have in common: a model whose weights they were made for, and one thread at a time that uses it."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from asyncthink.model.files import Network, load_network
from asyncthink.model.gate import Gate
from asyncthink.model.hook import DecoderError, HookedModel
from asyncthink.model.linear_copies import LinearCopies
from asyncthink.model.quantized import check_choice
from asyncthink.model.weights import described


class ServedModel(ABC):
    """The model of a decoder.

    Attributes:
        kind: its type.
        linears: the linear layers that serve it in the place of its own, or None.
        why_device, why_dtype: why it lies where it does, and has its dtype; None: as the live model has it.
    """

    kind: str
    linears: LinearCopies | None
    why_device: str = "where the live model is"
    why_dtype: str | None = None
    _hooked: HookedModel
    _weighted: Sequence[nn.Module]
    _made_for: str

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        revision: str | None = None,
        weights: str | None = None,
        lm_head: str = "auto",
        progress: Callable[[str], None] | None = None,
        **options: Any,
    ) -> Self:
        """A decoder for the model at a local folder, in a GGUF file, or at a hub id.

        ``device``, ``dtype`` and ``revision`` are those of :func:`asyncthink.model.files.load_network`; ``progress``
        is called with a phrase before each stage; ``options`` are those of the constructor. With ``weights`` the model
        has the quantized layers in the place of its own, so that they are in memory once. Layers that a GGUF file holds
        in 8 or 4 bits keep them on a CPU, whether or not others are quantized. DecoderError, one line, for a path
        without a model, weights that are missing or broken, and a model that cannot be served.
        """
        check_choice(weights, lm_head)
        network = load_network(path, revision=revision, device=device, dtype=dtype, progress=progress)
        return cls.of(network, weights=weights, lm_head=lm_head, progress=progress, **options)

    @classmethod
    @abstractmethod
    def of(cls, network: Network, **options: Any) -> Self:
        """A decoder for a model that was loaded; arguments and errors are those of :meth:`load`."""
        ...

    def _keep(self, hooked: HookedModel, kind: str, weighted: Sequence[nn.Module]) -> None:
        """Serve this model. ``weighted`` are modules whose dtype and device must stay; few, as every step looks."""
        self._hooked, self.kind = hooked, kind
        self.device = next(hooked.model.parameters()).device
        self._weighted, self._made_for = weighted, described(weighted)

    @property
    def model(self) -> nn.Module:
        """The model itself."""
        return self._hooked.model

    @functools.cached_property
    def gate(self) -> Gate:
        """Lets one thread at a time use this decoder's cache."""
        return Gate()

    def _check_weights(self) -> None:
        """DecoderError after ``model.to(...)``."""
        current = described(self._weighted)
        if current != self._made_for:
            raise DecoderError(
                f"{self.kind}: the weights are {current} now, but this decoder was made for {self._made_for}; "
                "move the model back, or make a new decoder (refresh() is for weights that changed their values)"
            )
