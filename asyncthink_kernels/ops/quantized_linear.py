"""quantized_linear: a linear layer whose weights have 8 or 4 bits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from asyncthink_kernels import dispatch
from asyncthink_kernels._checks import FLOATS, Checks, no_grad
from asyncthink_kernels.ops._library import register
from asyncthink_kernels.quantized import BLOCK, GROUP, QuantizedWeight

_BYTES, _HALF, _FLOAT = (torch.uint8,), (torch.float16,), (torch.float32,)


def quantized_linear(x: Tensor, weight: QuantizedWeight, bias: Tensor | None = None) -> Tensor:
    """``x' @ weight.T + bias``, where x' is x in 8 bits: groups of 32 inputs share a scale.

    A row's group of numbers x_i becomes ``a = max |x_i|``, ``s = a / 127`` and the integers ``r_i`` nearest to
    ``x_i * (127 / a)``, all in float32, ties to even; a group with ``a < 1e-30`` becomes zeros. Sums of ``r_i`` times
    the weights' integers are exact. Times both scales they are added up over the groups, from the first to the last, in
    float32 with one rounding for each operation. So a row's result is **bitwise** the same beside any other rows, with
    any number of threads, and with every instruction set.

    A row that holds NaN or an infinity gives NaN in all of its outputs; other rows do not change.

    Args:
        x: [..., I]; float32, bfloat16, float16 (float64: reference backend only); last dimension contiguous.
        weight: of I inputs and O outputs, on the device of x (:func:`asyncthink_kernels.quantized.quantize`).
        bias: [O] float32 (float64 beside a float64 x), contiguous.

    Returns:
        [..., O] in the dtype of x.

    Raises:
        ValueError: a shape, dtype, device or stride that does not fit.

    Source: the products of Q8_0 activations in llama.cpp.

    >>> import torch
    >>> from asyncthink_kernels import quantized_linear
    >>> from asyncthink_kernels.quantized import quantize
    >>> weight = torch.tensor([[1.0, 2.0], [0.0, -1.0]])
    >>> quantized_linear(torch.tensor([[3.0, 1.0]]), quantize(weight, 8)).round(decimals=1)
    tensor([[ 5., -1.]])
    """
    no_grad("quantized_linear", x=x)
    rows = x if x.ndim == 2 else x.reshape(-1, x.shape[-1])
    y: Tensor = _op(rows, weight.quants, weight.scales, weight.mins, bias, weight.out_features)
    return y if x.ndim == 2 else y.view(*x.shape[:-1], weight.out_features)


def run_quantized_linear(x: Tensor, weight: QuantizedWeight, bias: Tensor | None = None) -> Tensor:
    """:func:`quantized_linear` without torch's dispatcher, which takes longer than a small layer; not for gradients.

    Sizes are checked by the backend that runs.
    """
    rows = x if x.ndim == 2 else x.reshape(-1, x.shape[-1])
    y = rows.new_empty(rows.shape[0], weight.out_features)
    dispatch.find("quantized_linear", x.device.type)(rows, weight, bias, y)
    return y if x.ndim == 2 else y.view(*x.shape[:-1], weight.out_features)


def _output(
    x: Tensor, quants: Tensor, scales: Tensor, mins: Tensor | None, bias: Tensor | None, out_features: int
) -> Tensor:
    """Check everything; allocate the result."""
    check = Checks("quantized_linear", x.device)
    check.tensor("x", x, ("T", "I"), FLOATS)
    G, N = -(-x.shape[1] // GROUP), -(-out_features // BLOCK)
    check.tensor("quants", quants, (N, G, "B", 4 * BLOCK), _BYTES, dense=True)
    check.that(check.sizes["B"] in (8, 4), f"quants must have 8 or 4 in dimension 2, got {check.sizes['B']}")
    check.tensor("scales", scales, (N, G, BLOCK), _HALF, dense=True)
    if mins is not None:
        check.that(check.sizes["B"] == 4, "mins must be None beside 8 bits, got a tensor")
        check.tensor("mins", mins, (N, G, BLOCK), _HALF, dense=True)
    if bias is not None:
        wide = (torch.float64,) if x.dtype == torch.float64 else _FLOAT
        check.tensor("bias", bias, (out_features,), wide, dense=True)
    return x.new_empty(x.shape[0], out_features)


def _run(*given: Any) -> Tensor:
    y = _output(*given)
    x, quants, scales, mins, bias, out_features = given
    weight = QuantizedWeight(quants, scales, mins, out_features, x.shape[1])
    dispatch.find("quantized_linear", x.device.type)(x, weight, bias, y)
    return y


_op = register(
    "quantized_linear(Tensor x, Tensor quants, Tensor scales, Tensor? mins, Tensor? bias, SymInt out_features)"
    " -> Tensor",
    _run,
    _output,
)
