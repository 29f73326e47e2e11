"""What this machine can do, measured: the most bytes it reads or copies and operations it computes in a second.

The probes (limits.cpp) are compiled for this machine when first asked for, with the compiler that built the package. A
processor shares its caches, power and memory with others, so it may do more in one second than in another. Where a call
of the run was faster than the probes, what it reached is the limit of the whole run: no share is above 100%.
"""

from __future__ import annotations

import ctypes
import math
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch

from asyncthink_kernels.backends import native
from clock import Clock, GpuClock, in_turn

GPU_BYTES = 1 << 30  # read by a copy, and as many written
READ_BYTES = 256 << 20  # of each thread: far beyond any cache
STEPS = 20_000_000  # of the arithmetic probes: about 100 ms
TRIALS = 5


@dataclass(frozen=True)
class Limits:
    """Per second, of all threads torch uses together, the best that was seen.

    >>> probes = Limits(bandwidth=10.0, copy=10.0, bf16=200.0, f32=100.0)
    >>> probes.seconds(20, 150, torch.float32)
    2.0
    >>> probes.raised_by(1.0, 20, 150, torch.float32)  # who did it in one second saw more of both
    Limits(bandwidth=20.0, copy=20.0, bf16=200.0, f32=150.0)
    """

    bandwidth: float  # bytes read
    copy: float  # bytes read and bytes written, as many of each
    bf16: float  # operations, a multiply-add counted as two
    f32: float

    def seconds(self, bytes_read: int, operations: int, dtype: torch.dtype, bytes_written: int = 0) -> float:
        """The least time in which the bytes can be read once, the others written, and the operations done.

        Each byte written goes with one that is read at the speed of a copy; what else is read is read as if alone.
        """
        return max(self._moving(bytes_read, bytes_written), operations / self._peak(dtype))

    def raised_by(
        self, seconds: float, bytes_read: int, operations: int, dtype: torch.dtype, bytes_written: int = 0
    ) -> Limits:
        """These limits, but what a call that took ``seconds`` for that work reached where it is more.

        A GPU's limit stays what it is called: the bandwidth of a large copy.
        """
        if math.isinf(self.f32):
            return self
        faster = max(self._moving(bytes_read, bytes_written) / seconds, 1.0)
        moved = replace(self, bandwidth=self.bandwidth * faster, copy=self.copy * faster)
        computed = max(self._peak(dtype), operations / seconds)
        return replace(moved, bf16=computed) if dtype == torch.bfloat16 else replace(moved, f32=computed)

    def _peak(self, dtype: torch.dtype) -> float:
        return self.bf16 if dtype == torch.bfloat16 else self.f32

    def _moving(self, bytes_read: int, bytes_written: int) -> float:
        return 2 * bytes_written / self.copy + max(bytes_read - bytes_written, 0) / self.bandwidth


@cache
def measured(clock: Clock) -> Limits:
    """Of the clock's device. A GPU's only limit here is its largest copy: what a smaller one writes may stay in L2."""
    if isinstance(clock, GpuClock):
        source = torch.randint(0, 256, (GPU_BYTES,), dtype=torch.uint8, device=clock.device)
        target = torch.empty_like(source)
        ready = clock.ready(lambda part: target.copy_(source))
        bandwidth = 2 * GPU_BYTES / in_turn({"": ready.call}, 0.2, clock.flushed)[""].median
        return Limits(bandwidth, bandwidth, math.inf, math.inf)
    return _processor()


def _processor() -> Limits:
    probes, threads = _probes(), torch.get_num_threads()
    memory = [torch.ones(READ_BYTES, dtype=torch.uint8) for _ in range(threads)]
    copies = [torch.zeros_like(each) for each in memory]
    with ThreadPoolExecutor(threads) as pool:

        def rate(probe: Callable[[int], int]) -> float:
            start = time.perf_counter()
            amount = sum(pool.map(probe, range(threads)))
            return amount / (time.perf_counter() - start)

        def best(probe: Callable[[int], int]) -> float:
            return max(rate(probe) for _ in range(TRIALS))

        return Limits(
            bandwidth=best(lambda thread: probes.read(memory[thread].data_ptr(), READ_BYTES)),
            copy=best(lambda t: probes.copy(memory[t].data_ptr(), copies[t].data_ptr(), READ_BYTES)),
            bf16=best(lambda _: probes.multiply_add_bf16(STEPS)),
            f32=best(lambda _: probes.multiply_add_f32(STEPS)),
        )


def _probes() -> ctypes.CDLL:
    """Calls through ctypes release the interpreter's lock, so the threads really run at once."""
    cpu = native.load("_cpu")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "limits.so"
        narrow = cpu is not None and cpu.isa() == "avx2"  # forced: what the machine could do beyond it does not count
        machine = "-march=x86-64-v3" if narrow else "-march=native"
        flags = ["-O3", "-std=c++20", machine, "-shared", "-fPIC"]
        source = Path(__file__).with_suffix(".cpp")
        subprocess.run([os.environ.get("CXX", "c++"), *flags, str(source), "-o", str(library)], check=True)
        probes = ctypes.CDLL(str(library))
    for probe in (probes.read, probes.copy, probes.multiply_add_bf16, probes.multiply_add_f32):
        probe.restype = ctypes.c_int64
        probe.argtypes = [ctypes.c_int64]
    probes.read.argtypes = [ctypes.c_void_p, ctypes.c_int64]
    probes.copy.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    return probes
