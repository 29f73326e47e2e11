"""Small kernels for the tests of ahead-of-time compilation, which write this text elsewhere and say what varies."""

import collections
import multiprocessing
import os
from collections.abc import KeysView, Mapping
from typing import Any

import triton
import triton.language as tl

from asyncthink_kernels.backends.triton._launch import Variant

FACTOR = tl.constexpr(2.0)


@triton.jit
def _scaled(x):
    """Doubles."""
    return x * FACTOR


@triton.jit
def copy(source, target, n, BLOCK: tl.constexpr):
    """Copies n elements."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(target + at, _scaled(tl.load(source + at, mask=at < n)), mask=at < n)


@triton.jit
def dot(q, k, o, n, D: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
    row, dim, token = tl.arange(0, M), tl.arange(0, D), tl.arange(0, N)
    rows = tl.load(q + row[:, None] * D + dim[None, :])
    acc = tl.zeros((M, D), tl.float32)
    for start in range(0, n, N):
        keys = tl.load(k + (start + token)[:, None] * D + dim[None, :])
        acc += tl.dot(tl.dot(rows, tl.trans(keys)).to(keys.dtype), keys)
    tl.store(o + row[:, None] * D + dim[None, :], acc)


class Bomb(collections.UserDict[str, Any]):
    """Options that end the process which compiles with them."""

    def keys(self) -> KeysView[str]:  # what ** asks for
        if multiprocessing.parent_process() is not None:
            os._exit(3)
        return super().keys()


def copies(name: str, block: int, options: Mapping[str, Any] | None = None) -> Variant:
    types = {"source": "*bf16", "target": "*bf16", "n": "i32"}
    aligned = frozenset({"source", "target"})
    return Variant(name, copy, types, {"BLOCK": block}, aligned, 4, 1, {} if options is None else options)


def dots(name: str, sizes: dict[str, int], stages: int, **options: int) -> Variant:
    types = {"q": "*bf16", "k": "*bf16", "o": "*fp32", "n": "i32"}
    return Variant(name, dot, types, sizes, frozenset({"q", "k", "o"}), 4, stages, options)
