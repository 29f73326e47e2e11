"""Linear layers on weights packed once for oneDNN: :class:`PackedLinears`.

A decode step reads every weight for a few rows. On a CPU torch's ``F.linear`` reorders the weights in every call and
reaches at most a quarter of the memory's bandwidth; with weights in oneDNN's own order it reaches nearly all of it.
torch packs them with two private ops that its compiler uses (``mkldnn::_reorder_linear_weight``,
``mkldnn::_linear_pointwise``). Both are compared with ``F.linear`` before they are used.

A compiled pass (:mod:`asyncthink.model.compiled`) cannot hold a packed weight, whose layout torch hides. It holds a
number, by which an op of ours finds the weight at run time. So changed weights need no new compilation.

Letters: T rows, I features in, O features out.
"""

from __future__ import annotations

import itertools
import operator
import warnings
import weakref
from collections.abc import Callable
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional

from asyncthink.model.auto_dtype import dtype_name
from asyncthink.model.checks import one_line
from asyncthink.model.hook import DecoderError
from asyncthink.model.linear_copies import LinearCopies
from asyncthink.model.memory import free_memory

LEAST_BYTES = 32 << 20
"""The least bytes of weights that are packed by default: smaller models stay in the processor's caches."""

_ROWS = 64  # the number that oneDNN prepares its order for; that order is as fast for 1 and for 256
_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}

_packed: dict[int, Tensor] = {}
"""The packed weights of all models, by their numbers."""

_numbers = itertools.count()
_held: weakref.WeakKeyDictionary[nn.Module, weakref.ref[PackedLinears]] = weakref.WeakKeyDictionary()


class PackError(RuntimeError):
    """Weights cannot be packed here. The message is one line with the reason."""


class PackedLinears(LinearCopies):
    """The linear layers of a model, run on packed copies of their weights for the length of a pass.

    The copies take as much memory as the weights, and follow their changes (:class:`.linear_copies.LinearCopies`).

    Raises:
        PackError: no linear layers, or a torch whose private ops are missing or compute something else.
    """

    def __init__(self, model: nn.Module) -> None:
        modules: list[nn.Linear] = [module for module in model.modules() if _plain(module)]
        if not modules:
            raise PackError("it has no linear layers of torch's own class")
        shapes: dict[Any, nn.Linear] = {}
        for module in modules:
            shapes.setdefault((module.weight.shape, module.weight.dtype, module.bias is None), module)
        for module in shapes.values():
            _try(module)
        self._numbers = [next(_numbers) for _ in modules]
        super().__init__(modules, [_forward(*each) for each in zip(modules, self._numbers, strict=True)])
        self.nbytes = packable_bytes(model)
        weakref.finalize(self, _drop, self._numbers)

    def serves(self, model: nn.Module) -> bool:
        """Whether these are still all the layers of ``model`` that can be packed."""
        modules = [module for module in model.modules() if _plain(module)]
        return len(modules) == len(self._modules) and all(map(operator.is_, modules, self._modules))

    def _copy(self, number: int, weight: Tensor | None) -> None:
        if weight is None:
            _packed.pop(self._numbers[number], None)
        else:
            _packed[self._numbers[number]] = pack(weight)


def pack(weight: Tensor) -> Tensor:
    """weight [O,I] in oneDNN's order for few rows, which only :func:`_run` can read."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _ROWS)
    return packed


def packable_bytes(model: nn.Module) -> int:
    """Bytes of the packed weights of ``model``."""
    return sum(module.weight.nbytes for module in model.modules() if _plain(module))


def packed_linears(model: nn.Module, requested: bool | None) -> tuple[PackedLinears | None, str]:
    """The packed layers of ``model``, shared with its other decoders, or None and the reason.

    With ``requested`` None they are packed if the weights take :data:`LEAST_BYTES` and the copies at most half of the
    free memory; if torch's private ops do not work, a RuntimeWarning says so. Raises DecoderError if packing is
    requested and impossible.
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
        try:
            linears = PackedLinears(model)
            _held[model] = weakref.ref(linears)
            return linears, ""
        except PackError as error:
            reason = str(error)
            if requested is None:
                warnings.warn(f"linear layers run unpacked: {reason}", RuntimeWarning, stacklevel=3)
    if requested:
        raise DecoderError(f"pack=True: {reason}")
    return None, reason


def _unavailable(model: nn.Module) -> str | None:
    """Why a model of this device and dtype cannot be packed here; None where it can."""
    first = next(model.parameters())
    if first.device.type != "cpu":
        return f"weights are packed on a CPU only, these are on {first.device.type}"
    if first.dtype not in _TOLERANCE:
        return f"weights are packed in float32 and bfloat16, these are {dtype_name(first.dtype)}"
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return "this torch was built without oneDNN"
    if first.dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return "oneDNN has no bfloat16 on this processor"
    return None


def _forward(module: nn.Linear, number: int) -> Callable[[Tensor], Tensor]:
    """The replacement of a layer's forward: x [..., I] -> [..., O]."""

    def forward(x: Tensor) -> Tensor:
        if x.dtype != module.weight.dtype:  # happens under autocast
            return functional.linear(x, module.weight, module.bias)
        if torch.compiler.is_compiling():
            y: Tensor = torch.ops.asyncthink.packed_linear(x, module.weight, module.bias, number)
            return y
        return _linear(x, module.weight, module.bias, number)  # the same function without torch's dispatcher

    return forward


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, number: int) -> Tensor:
    """x [..., I], weight [O,I] and the number of its packed copy -> [..., O]."""
    if not x.numel():  # oneDNN refuses it
        return functional.linear(x, weight, bias)
    return _run(x, _packed[number], bias)


def _run(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return y


def _shape(x: Tensor, weight: Tensor, bias: Tensor | None, number: int) -> Tensor:
    """The result's shape and dtype, for torch.compile."""
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _drop(numbers: list[int]) -> None:
    for number in numbers:
        _packed.pop(number, None)


_OPS: Any = torch.library.Library("asyncthink", "FRAGMENT")  # type: ignore[no-untyped-call]
_OPS.define("packed_linear(Tensor x, Tensor weight, Tensor? bias, int number) -> Tensor")
_OPS.impl("packed_linear", _linear, "CPU")
_OPS.impl("packed_linear", _shape, "Meta")


def _plain(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a module computes exactly ``F.linear`` on a CPU weight of a dtype that can be packed."""
    if (
        type(module) is not nn.Linear or type(module.weight) is not nn.Parameter
    ):  # other kinds: weights quantised before
        return False
    return module.weight.dtype in _TOLERANCE and module.weight.device.type == "cpu"


def _try(module: nn.Linear) -> None:
    """Raises PackError unless the private ops exist and compute what ``F.linear`` computes."""
    weight = module.weight
    with torch.inference_mode(), torch.autocast("cpu", enabled=False):
        x = torch.linspace(-1, 1, 3 * weight.shape[1], dtype=torch.float32, device="cpu")
        x = x.view(1, 3, -1).to(weight.dtype)
        expected = functional.linear(x, weight, module.bias).float()
        try:
            got = _run(x, pack(weight), module.bias).float()
        except (AttributeError, RuntimeError, TypeError) as error:
            raise PackError(f"torch {torch.__version__} packs in another way: {one_line(error)}") from error
        difference = (got - expected).norm() / expected.norm().clamp(min=1e-30)
    if got.shape != expected.shape or not difference <= _TOLERANCE[weight.dtype]:
        raise PackError(f"packed weights {list(weight.shape)} give other values than F.linear ({difference:.1e} apart)")
