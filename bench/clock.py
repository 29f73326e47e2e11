"""Two clocks, and one way to take turns.

On a CPU the clock is perf_counter. On a GPU a call is captured into a CUDA graph where it can be, and a replay lies
between two events. Before it the stream sleeps, so that the host is ahead and no launch is waited for. *Flushed*:
before each replay other memory of several times the L2's size is written, and other memory again read through, so that
the call finds neither its data nor lines that must be written back. *Warm*: the same replay ran just before.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

Call = Callable[[int], object]
"""Works on part n of the memory; returns tensors, or None where it writes to what it was given."""
ROUNDS = (7, 300)  # fewest and most calls of each
SLEEP_CYCLES = 300_000  # about 0.2 ms: longer than the host needs for an uncaptured call of a few launches
MEMORY = 128 << 20  # bytes that the parts of a cell hold at least on a CPU, several times the largest cache


@dataclass(frozen=True)
class Spread:
    """Median, p20 and p80 of repeated timings, in seconds."""

    median: float
    p20: float
    p80: float
    repeats: int

    @classmethod
    def of(cls, times: Sequence[float]) -> Spread:
        """
        >>> Spread.of([3.0, 1.0, 2.0])
        Spread(median=2.0, p20=1.0, p80=3.0, repeats=3)

        Raises ValueError on no times.
        """
        ordered, n = sorted(times), len(times)
        if n == 0:
            raise ValueError("times: expected at least one, got none")
        middle = (ordered[(n - 1) // 2] + ordered[n // 2]) / 2
        return cls(middle, ordered[n // 5], ordered[-1 - n // 5], n)


@dataclass(frozen=True)
class Ready:
    """A call that can be timed; ``reason`` says why it was not captured, None where it was or nothing is captured.

    ``result`` is what each replay writes to, ``source`` the call that was captured: a graph owns none of the memory
    that its kernels read, so both live as long as it.
    """

    call: Call
    reason: str | None = None
    result: object = None
    source: Call | None = None


class CpuClock:
    """perf_counter. Calls walk through more memory than the caches hold, so nothing is flushed."""

    device = torch.device("cpu")

    def parts(self, bytes_a_call: int) -> int:
        """How many parts of the memory a cell needs, so that each call finds its data in memory, as in a model."""
        return 1 + MEMORY // bytes_a_call

    @property
    def ways(self) -> dict[str, Callable[[Call, int], float]]:
        """How a call is timed, by name; the first is the one that counts."""
        return {"": self.once}

    def ready(self, call: Call) -> Ready:
        """Run the call until it is warm, and capture it where that is possible."""
        call(0)
        return Ready(call)

    def once(self, call: Call, part: int = 0) -> float:
        """Seconds of one call."""
        start = time.perf_counter()
        call(part)
        return time.perf_counter() - start

    def synchronize(self) -> None:
        """Wait for the device; raises what it failed with."""


class GpuClock:
    """CUDA events around graph replays. Its flush buffers live as long as it does."""

    def __init__(self, device: torch.device | None = None, l2: int | None = None) -> None:
        self.device = device or torch.device("cuda")
        l2 = l2 or torch.cuda.get_device_properties(self.device).L2_cache_size
        self._written = torch.empty(4 * l2, dtype=torch.uint8, device=self.device).view(torch.float32)
        self._read = torch.ones_like(self._written)

    def parts(self, bytes_a_call: int) -> int:
        """One: what a call reads is flushed, and a graph works on what it was captured with."""
        return 1

    @property
    def ways(self) -> dict[str, Callable[[Call, int], float]]:
        """Flushed, which counts, and warm."""
        return {"": self.flushed, "warm": self.warm}

    def ready(self, call: Call) -> Ready:
        """As :meth:`CpuClock.ready`."""
        for _ in range(3):
            call(0)
        self.synchronize()
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph):
                result = call(0)
        except Exception as error:  # whatever a peer raises: it is timed without a graph then, and says so
            torch.cuda.set_stream(stream)  # a capture that fails leaves its own stream behind
            self.synchronize()
            return Ready(call, f"{type(error).__name__}: {first_line(error)}")
        return Ready(lambda part: graph.replay(), None, result, call)

    def once(self, call: Call, part: int = 0) -> float:
        """Seconds of one call, on the device's own clock."""
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(SLEEP_CYCLES)
        begin.record()
        call(part)
        end.record()
        self.synchronize()
        return float(begin.elapsed_time(end)) / 1e3

    def flush(self) -> None:
        """Fill L2 with clean lines of other memory."""
        self._written.fill_(0.5)
        self._read.amax()

    def flushed(self, call: Call, part: int = 0) -> float:
        self.flush()
        return self.once(call, part)

    def warm(self, call: Call, part: int = 0) -> float:
        call(part)
        return self.once(call, part)

    def synchronize(self) -> None:
        torch.cuda.synchronize()


Clock = CpuClock | GpuClock


def clock() -> Clock:
    """The clock of this machine: the GPU's where there is one."""
    return GpuClock() if torch.cuda.is_available() else CpuClock()


def in_turn(
    calls: Mapping[str, Call], seconds: float, how: Callable[[Call, int], float], parts: int = 1
) -> dict[str, Spread]:
    """Each call's times, ``seconds`` of each, ROUNDS at least and at most.

    Calls are timed round by round, each on the next part of the memory: a machine that slows down slows all of them. A
    call that would use up more than its seconds sits out some rounds, but none has fewer than the fewest.
    """
    numbers = itertools.count()
    rounds = {}
    for name, call in calls.items():
        start = time.perf_counter()  # flushing and waiting are part of what a round costs
        how(call, next(numbers) % parts)
        cost = max(time.perf_counter() - start, 1e-9)
        rounds[name] = min(max(int(seconds / cost), ROUNDS[0]), ROUNDS[1])
    most, found = max(rounds.values(), default=0), {name: list[float]() for name in calls}
    for turn in range(most):
        for name, call in calls.items():
            if turn * rounds[name] // most >= len(found[name]):
                found[name].append(how(call, next(numbers) % parts))
    return {name: Spread.of(times) for name, times in found.items()}


def host(clock: Clock, call: Callable[[], object], calls: int = 20) -> Spread:
    """Seconds a call takes end to end when called one after the other without a graph: what the host adds shows."""
    times = list[float]()
    for _ in range(ROUNDS[0]):
        clock.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        clock.synchronize()
        times.append((time.perf_counter() - start) / calls)
    return Spread.of(times)


def first_line(error: BaseException) -> str:
    """The first line of an error's text, so that a table can hold it."""
    lines = str(error).strip().splitlines()
    return lines[0].strip()[:200] if lines else ""
