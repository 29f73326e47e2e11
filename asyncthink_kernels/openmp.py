"""torch's OpenMP threads: how many a step takes beside other programs, and giving back those of a thread.

A step of a small model is hundreds of parallel regions, and each ends when its slowest thread has. Beside a busy
program a thread waits for its core some milliseconds in every region: with two threads on two cores a step took 2 to 6
times as long, with one thread 1.2 times. Waiting policies (``OMP_WAIT_POLICY``, ``GOMP_SPINCOUNT``) must be set before
torch is imported, and cost an idle machine up to 60%; the number of threads can change between steps.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

PERIOD = 0.25  # seconds between two looks; a look takes 0.04 ms on two cores
STALE = 2.0  # a longer period says nothing of now
SLACK = 0.25  # of a core: what others may use before a thread makes room

_SOFT, _HOST = 1, "omp_get_initial_device"  # arguments of omp_pause_resource


def _function(name: str) -> Callable[..., int] | None:
    """A function of the OpenMP runtime that torch itself calls; None if it has no such."""
    try:
        return getattr(ctypes.CDLL(torch._C.__file__), name)  # type: ignore[no-any-return]
    except AttributeError:
        return None


_set_threads, _pause, _host = (_function(name) for name in ("omp_set_num_threads", "omp_pause_resource", _HOST))


def release_team() -> None:
    """End the OpenMP threads that the calling thread has started; its next parallel region starts them again.

    A waiting thread of libgomp spins 300,000 times, but only 1,000 times once a process has more threads than cores
    (libgomp's manual, ``GOMP_SPINCOUNT``), and waking it takes long.
    A thread that loads a model and hands it to another one would leave such threads behind.

    >>> release_team()
    """
    if _pause is not None and _host is not None:
        _pause(_SOFT, _host())


def busy_seconds() -> float | None:
    """Processor seconds that all programs have used, on the cores of this process; None where that is not told."""
    try:
        lines = Path("/proc/stat").read_text().splitlines()
        cores = os.sched_getaffinity(0)
    except (OSError, AttributeError):
        return None
    ticks = 0
    for line in lines[1:]:
        name, *values = line.split()
        if not name.startswith("cpu"):
            break
        if int(name[3:]) in cores:
            user, nice, system, _, _, irq, softirq, steal = map(int, values[:8])
            ticks += user + nice + system + irq + softirq + steal
    return ticks / os.sysconf("SC_CLK_TCK")


class Neighbours:
    """Leaves cores to other programs: one thread less for each core that they use, at least one thread in all.

    Results do not change with the number of threads where the kernels' do not; ours never do.

    Args:
        cores: how many this process may run on.
        busy: processor seconds that all programs have used on them, or None if unknown: all threads then.
        own: processor seconds that this process has used.
        clock: seconds.

    >>> seconds = iter([0.0, 0.3])
    >>> used = iter([0.0, 0.5])  # of the two cores, 0.5 s in 0.3 s; 0.2 s of them our own
    >>> beside = Neighbours(2, busy=lambda: next(used), own=iter([0.0, 0.2]).__next__, clock=lambda: next(seconds))
    >>> beside.threads(2), beside.threads(2)
    (2, 1)
    """

    def __init__(
        self,
        cores: int | None = None,
        *,
        busy: Callable[[], float | None] = busy_seconds,
        own: Callable[[], float] = time.process_time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.others = 0.0  # cores that other programs used in the last period
        self._cores = cores if cores is not None else _cores()
        self._busy, self._own, self._clock = busy, own, clock
        self._last: tuple[float, float, float] | None = None

    def threads(self, most: int) -> int:
        """Threads for the next step, of ``most``."""
        if most > 1:
            self._look()
        if self._last is None:
            return most
        return max(1, min(most, math.floor(self._cores - self.others + SLACK)))

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Within, the calling thread's parallel regions take :meth:`threads`; then as many as before."""
        most = torch.get_num_threads()
        threads = self.threads(most)
        if threads == most or _set_threads is None:
            yield
            return
        _set_threads(threads)
        try:
            yield
        finally:
            _set_threads(most)

    def _look(self) -> None:
        now = self._clock()
        if self._last is not None and now - self._last[0] < PERIOD:
            return
        busy = self._busy()
        if busy is None:
            return
        own = self._own()
        if self._last is not None and now - self._last[0] < STALE:
            before, busy_before, own_before = self._last
            self.others = max(0.0, (busy - busy_before - (own - own_before)) / (now - before))
        self._last = now, busy, own


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1
