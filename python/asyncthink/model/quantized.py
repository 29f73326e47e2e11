"""Linear layers whose weights have 8 or 4 bits, on a CPU: :class:`QuantizedLinears`.

A decode step of few branches reads every weight for a few rows, so it takes as long as the weights have bytes. In 8
bits they have half of bfloat16's, in 4 bits less than a third. Products are those of the op ``quantized_linear``, which
are bitwise the same for any number of rows: with such layers an episode is bitwise independent of its batch.

Embeddings, norms, routers of experts, and weights that are no linear layers (fused experts) stay as they are.

Letters: T rows, I features in, O features out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from asyncthink.model.auto_dtype import dtype_name
from asyncthink.model.hook import DecoderError
from asyncthink.model.linear_copies import LinearCopies, through_ops
from asyncthink.model.weights import version
from asyncthink_kernels.ops.quantized_linear import quantized_linear, run_quantized_linear
from asyncthink_kernels.quantized import GROUP, QuantizedWeight, quantize

WEIGHTS = {"int8": 8, "int4": 4}
"""What ``weights`` may be, and the bits of each."""
LM_HEADS = ("auto", "int8", "int4", "stored")
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_ROUTERS = {"gate", "router", "shared_expert_gate"}  # names of layers whose outputs are compared with each other
_TOLERANCE = 3e-2  # relative, of a whole result: activations have 8 bits too


class QuantizedLinear(nn.Module):
    """x [..., I] -> [..., O] in the dtype of x; takes the place of an ``nn.Linear``. It has no gradient.

    >>> layer = QuantizedLinear(quantize(torch.eye(3), 8))
    >>> layer(torch.tensor([1.0, 2.0, 3.0])).round(decimals=1)
    tensor([1., 2., 3.])
    """

    def __init__(self, weight: QuantizedWeight, bias: Tensor | None = None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.out_features, weight.in_features
        for name, part in zip(("quants", "scales", "mins"), weight[:3], strict=True):
            self.register_buffer(name, part, persistent=False)
        self.register_buffer("bias", None if bias is None else bias.detach().float(), persistent=False)

    @property
    def held(self) -> QuantizedWeight:
        """The weights."""
        buffers: Any = self._buffers
        return QuantizedWeight(
            buffers["quants"], buffers["scales"], buffers["mins"], self.out_features, self.in_features
        )

    def hold(self, weight: QuantizedWeight, bias: Tensor | None) -> None:
        """Take other weights of the same format, in place: a compiled pass goes on with them."""
        for mine, new in zip((*self.held[:3], self._buffers["bias"]), (*weight[:3], bias), strict=True):
            if mine is not None and new is not None:
                mine.copy_(new)

    def forward(self, x: Tensor) -> Tensor:
        bias = self._buffers["bias"]
        if through_ops():
            return quantized_linear(x, self.held, bias)
        return run_quantized_linear(x, self.held, bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, {self.held.format}"


class QuantizedLinears(LinearCopies):
    """The linear layers of a model, run on weights in 8 or 4 bits.

    Args:
        model: its weights stay as they are, until :meth:`replace`.
        weights: "int8" or "int4" (with scale and offset) for all layers but the last; None: only those that are given.
        lm_head: "int8", "int4", "stored" (its weights as they are) or "auto": "int8".
        given: weights that are quantized already, by the names of their layers (from a file).

    Raises:
        DecoderError: another device than a CPU, another dtype than float32, bfloat16 and float16, weights that were
            quantized before, or no linear layer that could be.
    """

    _watched = ("weight", "bias")

    def __init__(
        self,
        model: nn.Module,
        weights: str | None,
        lm_head: str = "auto",
        given: Mapping[str, QuantizedWeight] | None = None,
    ) -> None:
        check_choice(weights, lm_head)
        refuse(model, f"weights={weights!r}")
        self.weights = weights or "as in the file"
        last = model.get_output_embeddings()  # type: ignore[operator]
        self.names: list[str] = []
        self.layers: list[QuantizedLinear] = []
        modules: list[nn.Linear] = []
        self.lm_head = "stored"
        for name, module in model.named_modules():
            weight = (given or {}).get(name)
            kind = ("int8" if lm_head == "auto" else lm_head) if module is last else weights
            if not isinstance(module, nn.Linear) or not _can_be(name, module):
                continue
            if weight is None and weights is not None and kind in WEIGHTS:
                weight = _quantized(name, module.weight, WEIGHTS[kind])
            if weight is not None:
                modules.append(module)
                self.names.append(name)
                self.layers.append(QuantizedLinear(weight, module.bias))
                self.lm_head = weight.format if module is last else self.lm_head
        if not modules:
            raise DecoderError(f"weights={weights!r}: the model has no linear layers of torch's own class")
        forwards: list[Callable[[Tensor], Tensor]] = [layer.forward for layer in self.layers]
        super().__init__(modules, forwards)
        self._sources = [self._source(module) for module in modules]
        self.nbytes = sum(layer.held.nbytes for layer in self.layers)
        self.stored_nbytes = sum(module.weight.nbytes for module in modules)
        self._compare()

    def replace(self, model: nn.Module) -> None:
        """Put the layers into the model, in the place of its own, whose weights nobody else needs then."""
        for name, layer in zip(self.names, self.layers, strict=True):
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, layer)
        self._modules, self._forwards, self._sources, self._tables = [], [], [], []

    @property
    def replaced(self) -> bool:
        """Whether the model has these layers in the place of its own."""
        return not self._modules

    def explain(self) -> str:
        """One sentence on formats and bytes."""
        formats = sorted({layer.held.format for layer in self.layers}, reverse=True)
        kept = "the stored weights are given up" if self.replaced else "the stored weights stay beside them"
        return (
            f"{self.weights}: {len(self.layers)} linear layers in {' and '.join(formats)} for {GROUP} weights, "
            f"{self.nbytes:,} bytes for {self.stored_nbytes:,}; lm_head {self.lm_head}; {kept}; activations in 8 bits"
        )

    def tensors(self) -> Iterator[Tensor]:
        return (tensor for layer in self.layers for tensor in layer.buffers())

    def _source(self, module: nn.Linear) -> tuple[int, ...] | None:
        source = super()._source(module)
        return source if source is None or module.bias is None else (*source, *version(module.bias))

    def _copy(self, number: int, weight: Tensor | None) -> None:
        if weight is not None:
            held = self.layers[number].held
            new = _quantized(self.names[number], weight, held.bits, offset=held.mins is not None)
            self.layers[number].hold(new, self._modules[number].bias)

    def _compare(self) -> None:
        """DecoderError unless a layer of each shape and format computes nearly what ``F.linear`` does."""
        kinds = {(layer.held.quants.shape, layer.held.mins is None): layer for layer in self.layers}
        for layer in kinds.values():
            x = torch.linspace(-1, 1, 3 * layer.in_features, device="cpu").sin().view(3, -1)
            weight = layer.held
            expected = functional.linear(x, weight.dequantized(), layer._buffers["bias"])
            difference = ((layer(x) - expected).norm() / expected.norm().clamp(min=1e-30)).item()
            if not difference <= _TOLERANCE:
                raise DecoderError(
                    f"quantized weights [{layer.out_features}, {layer.in_features}] give other values than F.linear "
                    f"({difference:.1e} apart)"
                )


def check_choice(weights: str | None, lm_head: str) -> None:
    """Raises ValueError for names that are not known."""
    if weights is not None and weights not in WEIGHTS:
        raise ValueError(f"weights: expected {' or '.join(WEIGHTS)}, got {weights!r}")
    if lm_head not in LM_HEADS:
        raise ValueError(f"lm_head: expected one of {', '.join(LM_HEADS)}, got {lm_head!r}")
    if weights is None and lm_head != "auto":
        raise ValueError(f"lm_head: expected 'auto' where weights are not quantized, got {lm_head!r}")


def refuse(model: nn.Module, what: str) -> None:
    """DecoderError where weights of this device, dtype or kind cannot be quantized."""
    first = next(model.parameters())
    if first.device.type != "cpu":
        raise DecoderError(f"{what}: weights are quantized on a CPU only, these are on {first.device.type}")
    if first.dtype not in _DTYPES:
        raise DecoderError(f"{what}: expected float32, bfloat16 or float16 weights, got {dtype_name(first.dtype)}")
    before = quantized_before(model)
    if before is not None:
        raise DecoderError(f"{what}: the weights were quantized before, by {before}")


def count_parameters(model: Any) -> int:
    """Numbers that the model has learned, whichever way they are held; those of tied embeddings count once."""
    quantized = [module for module in model.modules() if isinstance(module, QuantizedLinear)]
    if model.config.get_text_config(decoder=True).tie_word_embeddings:
        quantized = [module for module in quantized if module is not model.get_output_embeddings()]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return int(parameters + sum(module.in_features * module.out_features for module in quantized))


def quantized_before(model: nn.Module) -> str | None:
    """By which method the model's weights were quantized when they were saved; None: by none."""
    config = getattr(getattr(model, "config", None), "quantization_config", None)
    if config is None:
        return None
    method = config.get("quant_method") if isinstance(config, dict) else getattr(config, "quant_method", None)
    return str(getattr(method, "value", method))


def _quantized(name: str, weight: Tensor, bits: int, *, offset: bool = True) -> QuantizedWeight:
    try:
        return quantize(weight, bits, offset=offset)
    except ValueError as error:
        raise DecoderError(f"{name}: {error}") from None


def _can_be(name: str, module: nn.Linear) -> bool:
    if type(module) is not nn.Linear or type(module.weight) is not nn.Parameter:
        return False
    return name.rpartition(".")[2] not in _ROUTERS and min(module.weight.shape) >= GROUP
