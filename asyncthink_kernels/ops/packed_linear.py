"""packed_linear: a linear layer on weights in the order in which a CPU reads them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from asyncthink_kernels import dispatch
from asyncthink_kernels._checks import Checks, no_grad
from asyncthink_kernels.ops._library import register
from asyncthink_kernels.packed import BLOCK, INPUTS


def packed_linear(x: Tensor, packed: Tensor, out_features: int, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias`` on a CPU, the weight as :func:`asyncthink_kernels.packed.pack_linear` made it.

    Products are added in float32 from the first input to the last, bfloat16 by pairs where the processor multiplies
    pairs. A row's result is **bitwise** the same beside any other rows and with any number of threads; instruction sets
    may differ by rounding.

    Args:
        x: [..., I]; float32 or bfloat16, last dimension contiguous.
        packed: of I inputs, dtype of x.
        out_features: O.
        bias: [O], dtype of x, contiguous.

    Returns:
        [..., O] in the dtype of x.

    Raises:
        ValueError: a shape, dtype, device or stride that does not fit.

    >>> import torch
    >>> from asyncthink_kernels import packed_linear
    >>> from asyncthink_kernels.packed import pack_linear
    >>> packed_linear(torch.tensor([[3.0, 1.0]]), pack_linear(torch.tensor([[1.0, 2.0], [0.0, -1.0]])), 2)
    tensor([[ 5., -1.]])
    """
    no_grad("packed_linear", x=x, packed=packed)
    rows = x if x.ndim == 2 else x.reshape(-1, x.shape[-1])
    y: Tensor = _op(rows, packed, bias, out_features)
    return y if x.ndim == 2 else y.view(*x.shape[:-1], out_features)


def run_packed_linear(x: Tensor, packed: Tensor, out_features: int, bias: Tensor | None = None) -> Tensor:
    """:func:`packed_linear` without torch's dispatcher, which takes longer than a small layer; not for gradients.

    Sizes are checked by the backend that runs.
    """
    rows = x if x.ndim == 2 else x.reshape(-1, x.shape[-1])
    y = rows.new_empty(rows.shape[0], out_features)
    dispatch.find("packed_linear", x.device.type)(rows, packed, bias, y)
    return y if x.ndim == 2 else y.view(*x.shape[:-1], out_features)


def _output(x: Tensor, packed: Tensor, bias: Tensor | None, out_features: int) -> Tensor:
    """Check everything; allocate the result."""
    check = Checks("packed_linear", x.device)
    check.tensor("x", x, ("T", "I"), tuple(INPUTS))
    pair = INPUTS[x.dtype]
    shape = (-(-out_features // BLOCK), x.shape[1] // pair, BLOCK, *([pair] if pair > 1 else []))
    check.that(x.shape[1] % pair == 0, f"x must have a multiple of {pair} inputs, got {x.shape[1]}")
    check.tensor("packed", packed, shape, (x.dtype,), dense=True)
    if bias is not None:
        check.tensor("bias", bias, (out_features,), (x.dtype,), dense=True)
    return x.new_empty(x.shape[0], out_features)


def _run(*given: Any) -> Tensor:
    y = _output(*given)
    x, packed, bias, _ = given
    dispatch.find("packed_linear", x.device.type)(x, packed, bias, y)
    return y


_op = register(
    "packed_linear(Tensor x, Tensor packed, Tensor? bias, SymInt out_features) -> Tensor",
    _run,
    _output,
)
