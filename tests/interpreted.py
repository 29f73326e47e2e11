"""Triton's interpreter with a matrix product of one order of summation, and less to do, for the tests.

The interpreter multiplies by ``np.matmul``: by the BLAS that numpy brings. In which order that adds depends on the
processor and on the number of rows, so a row's last bits depend on what else is in its tile. On a GPU ``tl.dot`` adds
in one order. The product here is made of elementwise additions alone, which are the same on every processor.

At every call of a device function the interpreter goes through all that ``triton.language`` has, for what it must
replace: a quarter of its time. Here the names of that are looked up once.
"""

from __future__ import annotations

import functools
import inspect
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
    """Gives the interpreter of this process the product above and the list of names. Nothing may have run before."""
    import triton.language as tl
    from triton.runtime import interpreter

    def create_dot(self: Any, a: Any, b: Any, acc: Any, input_precision: Any, max_num_imprecise_acc: Any) -> Any:
        for operand in (a, b):
            if operand.dtype.primitive_bitwidth < 16:
                raise NotImplementedError(f"tl.dot: expected operands of at least 16 bits, got {operand.dtype}")
        return interpreter.TensorHandle(product(a.data, b.data, acc.data.dtype) + acc.data, acc.dtype.scalar)

    @functools.cache
    def builtins_of(place: Any) -> tuple[str, ...]:
        return tuple(name for name, member in inspect.getmembers(place) if tl.core.is_builtin(member))

    def patch_builtin(place: Any, builder: Any, scope: Any) -> None:
        for name in builtins_of(place):
            if tl.core.is_builtin(member := getattr(place, name)):  # not replaced yet
                interpreter._patch_attr(place, name, member, builder, scope)

    for place in (tl, tl.core, tl.tensor, tl.math, tl.core.tensor_descriptor_base):
        builtins_of(place)
    interpreter.InterpreterBuilder.create_dot = create_dot
    interpreter._patch_builtin = patch_builtin
