"""Linear layers on weights packed once for the CPU: :class:`PackedLinears`.

A decode step reads every weight for a few rows. On a CPU torch's ``F.linear`` reorders the weights in every call and
reaches at most a quarter of the memory's bandwidth; our op ``packed_linear`` reads them in one run. A row's result is
bitwise the same beside any other rows.

Letters: T rows, I features in, O features out.
"""

from __future__ import annotations

import operator
import weakref
from collections.abc import Iterator
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional

from asyncthink.model.auto_dtype import dtype_name
from asyncthink.model.hook import DecoderError
from asyncthink.model.linear_copies import LinearCopies, through_ops
from asyncthink.model.memory import free_memory
from asyncthink_kernels.ops.packed_linear import packed_linear, run_packed_linear
from asyncthink_kernels.packed import INPUTS, pack_linear, packable

LEAST_BYTES = 32 << 20
"""The least bytes of weights that are packed by default: smaller models stay in the processor's caches."""

_held: weakref.WeakKeyDictionary[nn.Module, weakref.ref[PackedLinears]] = weakref.WeakKeyDictionary()


class PackedLinears(LinearCopies):
    """The linear layers of a model, run on packed copies of their weights for the length of a pass.

    The copies take as much memory as the weights, and follow their changes (:class:`.linear_copies.LinearCopies`).

    Raises:
        DecoderError: there is no linear layer that can be packed.
    """

    def __init__(self, model: nn.Module) -> None:
        modules: list[nn.Linear] = [module for module in model.modules() if _plain(module)]
        if not modules:
            raise DecoderError("it has no linear layers of torch's own class that can be packed")
        self._layers = [_PackedLinear(module) for module in modules]
        super().__init__(modules, [layer.forward for layer in self._layers])
        self.nbytes = packable_bytes(model)

    def serves(self, model: nn.Module) -> bool:
        """Whether these are still all the layers of ``model`` that can be packed."""
        modules = [module for module in model.modules() if _plain(module)]
        return len(modules) == len(self._modules) and all(map(operator.is_, modules, self._modules))

    def tensors(self) -> Iterator[Tensor]:
        return (layer.packed for layer in self._layers if layer.packed is not None)

    def _copy(self, number: int, weight: Tensor | None) -> None:
        self._layers[number].hold(weight)


class _PackedLinear:
    """The packed weight of one layer, and the forward that reads it: x [..., I] -> [..., O]."""

    packed: Tensor | None = None

    def __init__(self, module: nn.Linear) -> None:
        self.module = module

    def hold(self, weight: Tensor | None) -> None:
        """Pack other values; of the same shape in place, so that what was compiled or recorded goes on with them."""
        new = None if weight is None or not packable(weight) else pack_linear(weight)
        if new is None or self.packed is None or (new.shape, new.dtype) != (self.packed.shape, self.packed.dtype):
            self.packed = new
        else:
            self.packed.copy_(new)

    def forward(self, x: Tensor) -> Tensor:
        module, packed = self.module, self.packed
        if packed is None or x.dtype != packed.dtype:  # the latter happens under autocast
            return functional.linear(x, module.weight, module.bias)
        x = x if x.stride(-1) == 1 else x.contiguous()  # as F.linear takes them
        run = packed_linear if through_ops() else run_packed_linear
        return run(x, packed, module.out_features, module.bias)


def packable_bytes(model: nn.Module) -> int:
    """Bytes of the packed weights of ``model``."""
    return sum(module.weight.nbytes for module in model.modules() if _plain(module))


def packed_linears(model: nn.Module, requested: bool | None) -> tuple[PackedLinears | None, str]:
    """The packed layers of ``model``, shared with its other decoders, or None and the reason.

    With ``requested`` None they are packed if the weights take :data:`LEAST_BYTES` and the copies at most half of the
    free memory. Raises DecoderError if packing is requested and impossible.
    """
    if requested is False:
        return None, "not asked for"
    reason = _unavailable(model)
    held = _held.get(model)
    shared = None if held is None else held()
    if reason is None and shared is not None and shared.serves(model):
        return shared, ""
    if reason is None and requested is None:
        nbytes, free = packable_bytes(model), free_memory(torch.device("cpu"))
        if nbytes < LEAST_BYTES:
            return None, f"its linear layers take {nbytes / 1e6:.1f} MB: they stay in the caches"
        if nbytes > free // 2:
            reason = f"packed weights would take {nbytes / 1e9:.1f} GB of {free / 1e9:.1f} that are free"
    if reason is None:
        linears = PackedLinears(model)
        _held[model] = weakref.ref(linears)
        return linears, ""
    if requested:
        raise DecoderError(f"pack=True: {reason}")
    return None, reason


def _unavailable(model: nn.Module) -> str | None:
    """Why a model of this device and dtype cannot be packed here; None where it can."""
    first = next(model.parameters())
    if first.device.type != "cpu":
        return f"weights are packed on a CPU only, these are on {first.device.type}"
    if first.dtype not in INPUTS:
        return f"weights are packed in float32 and bfloat16, these are {dtype_name(first.dtype)}"
    if not any(map(_plain, model.modules())):
        return "it has no linear layers of torch's own class"
    return None


def _plain(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a module computes exactly ``F.linear`` on a CPU weight that can be packed."""
    if (
        type(module) is not nn.Linear or type(module.weight) is not nn.Parameter
    ):  # other kinds: weights quantised before
        return False
    return packable(module.weight) and module.weight.device.type == "cpu"
