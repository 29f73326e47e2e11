"""Linear layers of a model that run on copies of their weights for the length of a pass: :class:`LinearCopies`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import profiler

from asyncthink.model.weights import version

_Source = tuple[int, ...] | None
"""The version of a weight when it was copied."""

_watchers: list[object] = []


@contextmanager
def watched_ops() -> Iterator[None]:
    """Layers call registered ops within, which something like a TorchDispatchMode sees."""
    _watchers.append(None)
    try:
        yield
    finally:
        _watchers.pop()


def through_ops() -> bool:
    """Whether layers call registered ops, as a compiler, a recorder or a profiler watches. The dispatcher is slower."""
    return torch.compiler.is_compiling() or bool(_watchers) or profiler._is_profiler_enabled


class LinearCopies(ABC):
    """``modules`` with the ``forwards`` that replace theirs; a subclass makes the copies.

    A layer is copied again when its weight was moved or changed in place, as by optimizers and ``load_state_dict``.
    Changes that escape torch's change count (writing through ``weight.data``, or to inference tensors) need
    :meth:`forget`.
    """

    nbytes: int
    """Of all copies."""
    _watched: tuple[str, ...] = ("weight",)

    def __init__(self, modules: Sequence[nn.Linear], forwards: Sequence[Callable[[Tensor], Tensor]]) -> None:
        self._modules = list(modules)
        self._tables = [module._parameters for module in modules]
        # Made once: a compiled pass identifies a layer by its forward, and must not see another when weights change.
        self._forwards = list(forwards)
        self.forget()

    def forget(self) -> None:
        """Copy all weights again in the next pass."""
        self._sources: list[_Source] = [None] * len(self._modules)
        self._copied: tuple[list[int], ...] | None = None

    @abstractmethod
    def tensors(self) -> Iterator[Tensor]:
        """All that the forwards read besides the modules' own."""

    @abstractmethod
    def _copy(self, number: int, weight: Tensor | None) -> None:
        """Make the copy of a layer; None: its weight is no plain parameter any more."""

    @contextmanager
    def patched(self) -> Iterator[None]:
        """The model with these layers. The caller must hold the model's lock (:class:`.hook.HookedModel`)."""
        self.copy_changed()
        replaced: list[dict[str, Any]] = []
        try:
            for module, source, forward in zip(self._modules, self._sources, self._forwards, strict=True):
                attributes = module.__dict__
                if source is not None and "forward" not in attributes:
                    attributes["forward"] = forward  # hides the class's method until it is deleted
                    replaced.append(attributes)
            yield
        finally:
            for attributes in replaced:
                del attributes["forward"]

    def copy_changed(self) -> None:
        """Copy the weights that changed, in place where their shapes are the same.

        A module whose weight is no plain parameter any more runs its own forward.
        """
        state = self._state()
        if state is not None and state == self._copied:
            return
        for number, module in enumerate(self._modules):
            source = self._source(module)
            if source != self._sources[number]:
                self._copy(number, module._parameters.get("weight"))
                self._sources[number] = source
        self._copied = state

    def _state(self) -> tuple[list[int], ...] | None:
        """Of all weights, in a few microseconds: which they are, where they lie, how often they changed.

        None where torch does not count changes (inference tensors): then each layer is asked.
        """
        weights: list[Any] = [table.get(name) for table in self._tables for name in self._watched]
        weights = [weight for weight in weights if weight is not None]
        if any(map(Tensor.is_inference, weights)):
            return None
        return list(map(id, weights)), [weight.data_ptr() for weight in weights], [w._version for w in weights]

    def _source(self, module: nn.Linear) -> _Source:
        weight = module._parameters.get("weight")
        return None if weight is None else version(weight)
