"""Triton's interpreter with a matrix product of one order of summation, for the tests.

The interpreter multiplies by ``np.matmul``: by the BLAS that numpy brings. In which order that adds depends on the
processor and on the number of rows, so a row's last bits depend on what else is in its tile. On a GPU ``tl.dot`` adds
in one order. The product here is made of elementwise additions alone, which are the same on every processor.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray


def product(a: NDArray[Any], b: NDArray[Any], dtype: DTypeLike) -> NDArray[Any]:
    """a [.., M, K] times b [.., K, N], computed in ``dtype``: [.., M, N].

    Of K terms the second half is added to the first, then of the K / 2 sums, until one is left. K: a power of two.
    """
    terms = np.moveaxis(a.astype(dtype), -1, 0)[..., None] * np.moveaxis(b.astype(dtype), -2, 0)[..., None, :]
    while len(terms) > 1:
        first, second = np.split(terms, 2)
        terms = first + second
    return terms[0]


def in_use() -> bool:
    """Whether Triton interprets its kernels in this process."""
    try:
        import triton
    except ImportError:
        return False
    return bool(triton.knobs.runtime.interpret)


def install() -> None:
    """Gives the interpreter of this process the product above."""
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def create_dot(self: Any, a: Any, b: Any, acc: Any, input_precision: Any, max_num_imprecise_acc: Any) -> Any:
        for operand in (a, b):
            if operand.dtype.primitive_bitwidth < 16:
                raise NotImplementedError(f"tl.dot: expected operands of at least 16 bits, got {operand.dtype}")
        return TensorHandle(product(a.data, b.data, acc.data.dtype) + acc.data, acc.dtype.scalar)

    InterpreterBuilder.create_dot = create_dot
