"""The meaning of dtype "auto": the dtype that this processor multiplies fastest, measured within milliseconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch

Use = Literal["decoding", "training"]
Measure = Callable[[torch.dtype], float]

ROWS, WIDTH = 64, 512
#: A dtype replaces the safer one, or the stored one, only if it is this much faster. So noise in the measurement does
#: not decide.
MARGIN = 1.25
_HALVES = (torch.bfloat16, torch.float16)
_RUNS, _SECONDS = 3, 0.005


@dataclass(frozen=True, slots=True)
class Choice:
    """A dtype and the reason for it, one plain sentence without a full stop."""

    dtype: torch.dtype
    why: str


def product_rate(dtype: torch.dtype) -> float:
    """GFLOP/s of ``[ROWS, WIDTH] @ [WIDTH, WIDTH]`` in ``dtype`` on the CPU, with the threads torch uses now.

    The best of several runs, measured once for each dtype and number of threads. Uses no random numbers.
    """
    return _product_rate(dtype, torch.get_num_threads())


@lru_cache
def _product_rate(dtype: torch.dtype, threads: int) -> float:
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        rows = torch.ones(ROWS, WIDTH, dtype=dtype, device="cpu")
        weight = torch.ones(WIDTH, WIDTH, dtype=dtype, device="cpu")
        torch.nn.functional.linear(rows, weight)  # the first call prepares the kernel
        seconds: list[float] = []
        while len(seconds) < _RUNS or sum(seconds) < _SECONDS:
            start = time.perf_counter()
            torch.nn.functional.linear(rows, weight)
            seconds.append(time.perf_counter() - start)
    return 2 * ROWS * WIDTH * WIDTH / max(min(seconds), 1e-9) / 1e9


def choose_dtype(
    device: torch.device | str, stored: torch.dtype, *, use: Use, measure: Measure = product_rate
) -> Choice:
    """The dtype in which matrices should be multiplied on ``device``.

    ``decoding``: the dtype to hold the weights in. It is ``stored`` unless ``stored`` is bfloat16 or float16 and
    float32 is :data:`MARGIN` times as fast on this CPU, or this GPU has no bfloat16.

    ``training``: bfloat16 means autocast to it over float32 weights. It is chosen where it is :data:`MARGIN` times as
    fast as float32 on this CPU, and on a GPU that supports it. Weights in another dtype than float32 keep theirs.

    Args:
        device: where the model runs.
        stored: dtype of the weights as they are saved (decoding) or held (training).
        use: decoding or training.
        measure: GFLOP/s of products of many rows on this CPU; called only if the choice depends on it.

    Raises:
        ValueError: another ``use``, or a ``stored`` that is no floating-point dtype.

    >>> slow = {torch.float32: 55.0, torch.bfloat16: 7.0}
    >>> choice = choose_dtype("cpu", torch.bfloat16, use="decoding", measure=slow.__getitem__)
    >>> choice.dtype
    torch.float32
    >>> choice.why.partition(":")[0]
    'float32 instead of the stored bfloat16'
    """
    if use not in ("decoding", "training"):
        raise ValueError(f"use: expected decoding or training, got {use!r}")
    if not stored.is_floating_point:
        raise ValueError(f"stored: expected a floating-point dtype, got {dtype_name(stored)}")
    kind = torch.device(device)
    return _for_decoding(kind, stored, measure) if use == "decoding" else _for_training(kind, stored, measure)


def _for_decoding(device: torch.device, stored: torch.dtype, measure: Measure) -> Choice:
    if stored not in _HALVES:
        return Choice(stored, f"{dtype_name(stored)}, as the weights are stored")
    if device.type == "cuda" and stored is torch.bfloat16 and not _gpu_has_bfloat16(device):
        return Choice(
            torch.float32,
            "float32 instead of the stored bfloat16: this GPU has no bfloat16 instructions; "
            "weights and cache take twice the memory",
        )
    if device.type != "cpu":
        return Choice(stored, f"{dtype_name(stored)}, as the weights are stored")
    half, full, measured = _compare(stored, measure)
    if full >= MARGIN * half:
        return Choice(
            torch.float32,
            f"float32 instead of the stored {dtype_name(stored)}: {measured}; weights and cache take twice the memory",
        )
    return Choice(stored, f"{dtype_name(stored)}, as the weights are stored: {measured}")


def _for_training(device: torch.device, stored: torch.dtype, measure: Measure) -> Choice:
    if stored is not torch.float32:
        return Choice(stored, f"{dtype_name(stored)}, as the weights are held")
    if device.type == "cuda":
        if _gpu_has_bfloat16(device):
            return Choice(torch.bfloat16, "bfloat16 products (autocast): this GPU has bfloat16 instructions")
        return Choice(torch.float32, "float32 products: this GPU has no bfloat16 instructions")
    if device.type != "cpu":
        return Choice(torch.float32, f"float32 products: bfloat16 is not tried on {device.type}")
    half, full, measured = _compare(torch.bfloat16, measure)
    if half >= MARGIN * full:
        return Choice(torch.bfloat16, f"bfloat16 products (autocast): {measured}")
    return Choice(torch.float32, f"float32 products: {measured}")


def _compare(half: torch.dtype, measure: Measure) -> tuple[float, float, str]:
    """(GFLOP/s in ``half``, GFLOP/s in float32, both as text)."""
    rate, full = measure(half), measure(torch.float32)
    threads = torch.get_num_threads()
    of = f"{threads} thread{'s' if threads > 1 else ''}"
    return rate, full, f"this CPU multiplies {rate:.0f} GFLOP/s in {dtype_name(half)}, {full:.0f} in float32 ({of})"


def _gpu_has_bfloat16(device: torch.device) -> bool:
    with torch.cuda.device(device):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def dtype_name(dtype: torch.dtype) -> str:
    """The name without its "torch." in front."""
    return str(dtype).removeprefix("torch.")
