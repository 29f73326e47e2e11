"""What runs inside a Ray actor: models, and the samplers that draw episodes from them.

An actor's process imports torch only in :meth:`DecoderActor.open`, after the number of its threads is set.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from asyncthink.episode.options import Options
from asyncthink.episode.params import SamplingParams
from asyncthink.episode.records import Episode
from asyncthink.protocol.messages import Question

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

    from asyncthink.engine.loaded import LoadedModel
    from asyncthink.engine.sampler import ForkJoinSampler

#: Opens the models of an actor, by name. It is pickled, and called in the actor's process.
Opener = Callable[[], "Mapping[str, LoadedModel]"]
#: Options of a sampler, as sorted pairs.
SamplerOptions = tuple[tuple[str, Any], ...]


class Weight(NamedTuple):
    """A tensor as plain memory, which Ray shares between the processes of a machine: ``data`` are its bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: np.ndarray[Any, Any]


Weights = dict[str, Weight]


@dataclass(frozen=True, slots=True)
class Job:
    """A call of a method of the actor. ``label`` is for messages: what begins again if the actor dies."""

    method: str
    arguments: tuple[Any, ...]
    label: str

    def __str__(self) -> str:
        return self.label


@dataclass(frozen=True, slots=True)
class Served:
    """What a driver needs to know of a model on an actor, and of a sampler of it."""

    options: Options
    parameters: int
    machine: str


class DecoderActor:
    """Models with a decoder each, in a process of its own. Every call says which version of the weights it expects.

    Args:
        threads: CPU threads that the process may use.
    """

    def __init__(self, threads: int) -> None:
        os.environ["OMP_NUM_THREADS"] = str(threads)  # read when OpenMP is loaded, which torch does
        self._threads = threads
        self._version = 0
        self._models: Mapping[str, LoadedModel] = {}
        self._samplers: dict[tuple[str, SamplerOptions], ForkJoinSampler] = {}

    def open(self, opener: Opener, version: int, *weights: Weights) -> None:
        """Open the models, and bring them to ``version`` by these weights, in order. Raises what opening raises."""
        import torch

        torch.set_num_threads(self._threads)
        self._models = opener()
        for part in weights:
            self._load(part)
        self._version = version

    def take(self, version: int, weights: Weights) -> int:
        """Replace weights; returns the version that they make. Those of a version that is there already are skipped.

        Raises ValueError for weights that are not the model's, RuntimeError if a version in between is missing.
        """
        if version == self._version:
            return version
        if version != self._version + 1:
            raise RuntimeError(f"weights: expected version {self._version + 1}, got {version}")
        self._load(weights)
        self._version = version
        return version

    def serve(self, model: str, options: SamplerOptions) -> Served:
        """Make a sampler, and describe it. Raises ValueError as the sampler's constructor does."""
        loaded = self._models[model]
        return Served(self._sampler(model, options).options, loaded.parameters, loaded.machine)

    def generate(
        self,
        version: int,
        model: str,
        options: SamplerOptions,
        questions: Sequence[Question],
        params: Sequence[SamplingParams],
    ) -> list[Episode]:
        """Episodes of these questions, drawn together. Raises RuntimeError unless the weights have this version."""
        if version != self._version:
            raise RuntimeError(f"weights: expected version {version} on every actor, got {self._version}")
        return self._sampler(model, options).generate(questions, params)

    def _sampler(self, model: str, options: SamplerOptions) -> ForkJoinSampler:
        if (model, options) not in self._samplers:
            self._samplers[model, options] = self._models[model].sampler(**dict(options))
        return self._samplers[model, options]

    def _load(self, weights: Weights) -> None:
        (loaded,) = self._models.values()
        load_weights(loaded.decoder.model, weights)
        loaded.decoder.refresh(weights_only=True)


def weights_of(model: nn.Module, trainable: bool = False) -> Weights:
    """The parameters by name, views of those on the CPU; ``trainable``: those that training changes alone."""
    import torch

    return {
        name: Weight(
            str(parameter.dtype).removeprefix("torch."),
            tuple(parameter.shape),
            parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy(),
        )
        for name, parameter in model.named_parameters()
        if parameter.requires_grad or not trainable
    }


def load_weights(model: nn.Module, weights: Weights) -> None:
    """Copy weights into a model. Raises ValueError, before any is changed, for names, shapes or dtypes it has not.

    >>> import torch
    >>> source, target = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
    >>> load_weights(target, weights_of(source))
    >>> torch.equal(source.weight, target.weight)
    True
    """
    import torch

    own = dict(model.named_parameters())
    for name, weight in weights.items():
        if name not in own:
            raise ValueError(f"weights: expected names of the model's parameters, got {name!r}")
        expected = (str(own[name].dtype).removeprefix("torch."), tuple(own[name].shape))
        if expected != (weight.dtype, weight.shape):
            raise ValueError(f"weights: expected {name} as {expected}, got {(weight.dtype, weight.shape)}")
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # it is only read
        for name, weight in weights.items():
            flat = torch.from_numpy(weight.data).view(getattr(torch, weight.dtype))
            own[name].copy_(flat.reshape(weight.shape))
