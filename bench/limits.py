"""What this machine can do, measured: the most bytes it reads and the most operations it computes in a second.

The probes (limits.cpp) are compiled for this machine when first asked for, with the compiler that built the package.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

READ_BYTES = 256 << 20  # of each thread: far beyond any cache
STEPS = 20_000_000  # of the arithmetic probes: about 100 ms
TRIALS = 5


@dataclass(frozen=True)
class Limits:
    """Per second, of all threads torch uses together, best of several trials."""

    bandwidth: float  # bytes read
    bf16: float  # operations, a multiply-add counted as two
    f32: float

    def seconds(self, bytes_read: int, operations: int, dtype: torch.dtype) -> float:
        """The least time in which the bytes can be read once and the operations done."""
        peak = self.bf16 if dtype == torch.bfloat16 else self.f32
        return max(bytes_read / self.bandwidth, operations / peak)


@cache
def measured() -> Limits:
    probes, threads = _probes(), torch.get_num_threads()
    memory = [torch.ones(READ_BYTES, dtype=torch.uint8) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:

        def rate(probe: Callable[[int], int]) -> float:
            start = time.perf_counter()
            amount = sum(pool.map(probe, range(threads)))
            return amount / (time.perf_counter() - start)

        def best(probe: Callable[[int], int]) -> float:
            return max(rate(probe) for _ in range(TRIALS))

        return Limits(
            bandwidth=best(lambda thread: probes.read(memory[thread].data_ptr(), READ_BYTES)),
            bf16=best(lambda _: probes.multiply_add_bf16(STEPS)),
            f32=best(lambda _: probes.multiply_add_f32(STEPS)),
        )


def _probes() -> ctypes.CDLL:
    """Calls through ctypes release the interpreter's lock, so the threads really run at once."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "limits.so"
        flags = ["-O3", "-std=c++20", "-march=native", "-shared", "-fPIC"]
        source = Path(__file__).with_suffix(".cpp")
        subprocess.run([os.environ.get("CXX", "c++"), *flags, str(source), "-o", str(library)], check=True)
        probes = ctypes.CDLL(str(library))
    for probe in (probes.read, probes.multiply_add_bf16, probes.multiply_add_f32):
        probe.restype = ctypes.c_int64
        probe.argtypes = [ctypes.c_int64]
    probes.read.argtypes = [ctypes.c_void_p, ctypes.c_int64]
    return probes
