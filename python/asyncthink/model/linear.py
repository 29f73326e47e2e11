"""Linear layers on weights packed once for oneDNN: :class:`PackedLinears`.

A decode step reads every weight for a handful of rows. torch's ``F.linear`` on a CPU reorders them on the way, in every
call, and reaches a quarter of the memory's bandwidth and less; oneDNN reads weights that lie in its own order at nearly
all of it. torch packs them with two private ops that its compiler uses (``mkldnn::_reorder_linear_weight``,
``mkldnn::_linear_pointwise``): they are tried against ``F.linear`` before they are trusted.

A compiled pass (:mod:`asyncthink.model.compiled`) cannot hold a packed weight, whose layout torch hides: it holds a
number, under which an op of ours finds the weight at run time. So weights that change compile nothing again.

Letters: T rows, I features in, O features out.
"""

from __future__ import annotations

import itertools
import operator
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional

from asyncthink.model.hook import DecoderError
from asyncthink.model.memory import free_memory

LEAST_BYTES = 32 << 20
"""Weights that are packed without being asked for: smaller models stay in the caches of a processor."""

_ROWS = 64  # that oneDNN is told to expect; its order for 64 is as fast for 1 and for 256
_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}

_packed: dict[int, Tensor] = {}
"""The packed weights of all models, by their numbers."""

_numbers = itertools.count()
_held: weakref.WeakKeyDictionary[nn.Module, weakref.ref[PackedLinears]] = weakref.WeakKeyDictionary()

#: What a weight was when it was packed: its address and the count of its changes.
_Source = tuple[int, int] | None


class PackError(RuntimeError):
    """Weights cannot be packed here; one line that says why."""


class PackedLinears:
    """The linear layers of a model, run on packed copies of their weights for the length of a pass.

    The copies take as much memory as the weights. They follow the weights: a layer is packed again where its weight
    moved or was changed in place, as optimizers and ``load_state_dict`` do it. What escapes torch's count of changes
    (writing through ``weight.data``, or to inference tensors) needs :meth:`forget`.

    Raises:
        PackError: not this device or dtype, no linear layers, or a torch whose private ops are others.
    """

    def __init__(self, model: nn.Module) -> None:
        found: list[nn.Linear] = [module for module in model.modules() if _plain(module)]
        if not found:
            raise PackError("it has no linear layers of torch's own class")
        shapes: dict[Any, nn.Linear] = {}
        for module in found:
            shapes.setdefault((module.weight.shape, module.weight.dtype, module.bias is None), module)
        for module in shapes.values():
            _try(module)
        self._modules = found
        self._numbers = [next(_numbers) for _ in found]
        # Made once, whatever becomes of the weights: a compiled pass knows a layer by its forward.
        self._forwards = [_forward(module, number) for module, number in zip(found, self._numbers, strict=True)]
        self._sources: list[_Source] = [None] * len(found)
        self.nbytes = packable_bytes(model)
        weakref.finalize(self, _drop, self._numbers)

    def forget(self) -> None:
        """Pack everything again at the next pass."""
        self._sources = [None] * len(self._modules)

    def serves(self, model: nn.Module) -> bool:
        """Whether these are still all the layers of ``model`` that can be packed."""
        now = [module for module in model.modules() if _plain(module)]
        return len(now) == len(self._modules) and all(map(operator.is_, now, self._modules))

    @contextmanager
    def lent(self) -> Iterator[None]:
        """The model with packed linear layers. Whoever calls sees to it that nobody else runs the model meanwhile."""
        self._follow()
        lent: list[dict[str, Any]] = []
        try:
            for module, source, forward in zip(self._modules, self._sources, self._forwards, strict=True):
                own = module.__dict__
                if source is not None and "forward" not in own:
                    own["forward"] = forward  # hides the class's method, and leaves no trace when it goes
                    lent.append(own)
            yield
        finally:
            for own in lent:
                del own["forward"]

    def _follow(self) -> None:
        """Pack what changed. A module that has no plain weight any more is left to itself."""
        for number, module in enumerate(self._modules):  # every step runs this for every layer
            weight = module._parameters.get("weight")
            source = None if weight is None else (weight.data_ptr(), 0 if weight.is_inference() else weight._version)
            if source != self._sources[number]:
                if weight is None:
                    _packed.pop(self._numbers[number], None)
                else:
                    _packed[self._numbers[number]] = pack(weight)
                self._sources[number] = source


def pack(weight: Tensor) -> Tensor:
    """weight [O,I] in the order that oneDNN likes best for few rows; opaque to everything but :func:`_run`."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _ROWS)
    return packed


def packable_bytes(model: nn.Module) -> int:
    """Bytes that the packed weights of ``model`` take."""
    return sum(module.weight.nbytes for module in model.modules() if _plain(module))


def packed_linears(model: nn.Module, wish: bool | None) -> tuple[PackedLinears | None, str]:
    """The packed layers of ``model``, shared with whoever has them already, or None and why not.

    Without a ``wish`` they are packed where that pays (:data:`LEAST_BYTES`) and takes less than half of the free
    memory; a torch that packs in another way then gives a RuntimeWarning. DecoderError for a wish that cannot be met.
    """
    if wish is False:
        return None, "not asked for"
    reason = _why_not(model)
    held = _held.get(model)
    shared = None if held is None else held()
    if reason is None and shared is not None and shared.serves(model):
        return shared, ""
    if reason is None and wish is None:
        nbytes, free = packable_bytes(model), free_memory(torch.device("cpu"))
        if nbytes < LEAST_BYTES:
            return None, f"its linear layers take {nbytes / 1e6:.1f} MB: they stay in the caches"
        if nbytes > free // 2:
            reason = f"packed weights would take {nbytes / 1e9:.1f} GB of {free / 1e9:.1f} that are free"
    if reason is None:
        try:
            made = PackedLinears(model)
            _held[model] = weakref.ref(made)
            return made, ""
        except PackError as error:
            reason = str(error)
            if wish is None:
                warnings.warn(f"linear layers run unpacked: {reason}", RuntimeWarning, stacklevel=3)
    if wish:
        raise DecoderError(f"pack=True: {reason}")
    return None, reason


def _why_not(model: nn.Module) -> str | None:
    """Why no model like this can be packed here; None where it can."""
    first = next(model.parameters())
    if first.device.type != "cpu":
        return f"weights are packed on a CPU only, these are on {first.device.type}"
    if first.dtype not in _TOLERANCE:
        return f"weights are packed in float32 and bfloat16, these are {str(first.dtype).removeprefix('torch.')}"
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return "this torch was built without oneDNN"
    if first.dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return "oneDNN has no bfloat16 on this processor"
    return None


def _forward(module: nn.Linear, number: int) -> Callable[[Tensor], Tensor]:
    """What runs in the place of a layer's forward: x [..., I] -> [..., O]."""

    def forward(x: Tensor) -> Tensor:
        if x.dtype != module.weight.dtype:  # as under autocast
            return functional.linear(x, module.weight, module.bias)
        if torch.compiler.is_compiling():
            y: Tensor = torch.ops.asyncthink.packed_linear(x, module.weight, module.bias, number)
            return y
        return _linear(x, module.weight, module.bias, number)  # the same without the way through the dispatcher

    return forward


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, number: int) -> Tensor:
    """x [..., I], weight [O,I] and the number under which it was packed -> [..., O]."""
    if not x.numel():  # what oneDNN does not take
        return functional.linear(x, weight, bias)
    return _run(x, _packed[number], bias)


def _run(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return y


def _shape(x: Tensor, weight: Tensor, bias: Tensor | None, number: int) -> Tensor:
    """What the compiler is told of :func:`_linear`."""
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _drop(numbers: list[int]) -> None:
    for number in numbers:
        _packed.pop(number, None)


_OPS: Any = torch.library.Library("asyncthink", "FRAGMENT")  # type: ignore[no-untyped-call]
_OPS.define("packed_linear(Tensor x, Tensor weight, Tensor? bias, int number) -> Tensor")
_OPS.impl("packed_linear", _linear, "CPU")
_OPS.impl("packed_linear", _shape, "Meta")


def _plain(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a module computes just ``F.linear`` on a weight of a dtype that can be packed."""
    return type(module) is nn.Linear and module.weight.dtype in _TOLERANCE and module.weight.device.type == "cpu"


def _try(module: nn.Linear) -> None:
    """PackError unless the private ops are there and give what ``F.linear`` gives."""
    weight = module.weight
    with torch.inference_mode(), torch.autocast("cpu", enabled=False):
        x = torch.linspace(-1, 1, 3 * weight.shape[1], dtype=torch.float32, device="cpu")
        x = x.view(1, 3, -1).to(weight.dtype)
        expected = functional.linear(x, weight, module.bias).float()
        try:
            got = _run(x, pack(weight), module.bias).float()
        except (AttributeError, RuntimeError, TypeError) as error:
            raise PackError(f"torch {torch.__version__} packs in another way: {str(error).splitlines()[0]}") from error
        apart = (got - expected).norm() / expected.norm().clamp(min=1e-30)
    if got.shape != expected.shape or not apart <= _TOLERANCE[weight.dtype]:
        raise PackError(f"packed weights {list(weight.shape)} give other values than F.linear ({apart:.1e} apart)")
