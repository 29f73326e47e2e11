"""Times that can be compared: the same game for everybody who is timed.

On a GPU a call is captured into a CUDA graph where it can be, and a replay lies between two events. Before it the
stream sleeps, so that the host is ahead and no launch is waited for. *Flushed*: before each replay other memory of
several times the L2's size is written, and other memory again read through, so that the call finds neither its data
nor lines that must be written back. *Warm*: the same replay ran just before. Calls are timed in turn, round by round:
a chip that slows down slows all of them.

On a CPU the clock is the host's, and the flush the same with a fixed size.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .spread import Spread

Call = Callable[[], object]
ROUNDS = (7, 60)  # fewest and most
SLEEP_CYCLES = 300_000  # about 0.2 ms: longer than the host needs for an uncaptured call of a few launches
CPU_FLUSH = 8 << 20  # bytes


@dataclass(frozen=True)
class Ready:
    """A call that can be timed; `reason` says why it was not captured, None where it was.

    `result` is what each replay writes to, `source` the call that was captured: a graph owns none of the memory that
    its kernels read, so both live as long as it.
    """

    call: Call
    reason: str | None
    result: object = None
    source: Call | None = None


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Clock:
    """Times calls on one device. Its flush buffers live as long as it does."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.gpu = device.type == "cuda"
        l2 = torch.cuda.get_device_properties(device).L2_cache_size if self.gpu else CPU_FLUSH // 4
        self._written = torch.empty(max(4 * l2, CPU_FLUSH), dtype=torch.uint8, device=device).view(torch.float32)
        self._read = torch.ones_like(self._written)

    def ready(self, call: Call) -> Ready:
        """Run the call until it is warm, and capture it where that is possible."""
        for _ in range(3):
            call()
        synchronize(self.device)
        if not self.gpu:
            return Ready(call, "no GPU")
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph):
                result = call()
        except Exception as error:  # whatever a peer raises: it is timed without a graph then, and says so
            torch.cuda.set_stream(stream)  # a capture that fails leaves its own stream behind
            torch.cuda.synchronize()
            return Ready(call, f"{type(error).__name__}: {first_line(error)}")
        return Ready(graph.replay, None, result, call)

    def flush(self) -> None:
        self._written.fill_(0.5)
        self._read.amax()

    def once(self, call: Call) -> float:
        """Seconds of one call, on the device's own clock."""
        if not self.gpu:
            start = time.perf_counter()
            call()
            return time.perf_counter() - start
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(SLEEP_CYCLES)
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize()
        return float(begin.elapsed_time(end)) / 1e3

    def flushed(self, call: Call) -> float:
        self.flush()
        return self.once(call)

    def warm(self, call: Call) -> float:
        call()
        return self.once(call)

    def in_turn(self, calls: Mapping[str, Call], seconds: float, how: Callable[[Call], float]) -> dict[str, Spread]:
        """Each call's times over rounds that take about `seconds` in all, ROUNDS at least and at most.

        A call that would use up more than its share of them sits out some rounds, but none has fewer than the fewest.
        """
        share = seconds / max(len(calls), 1)
        rounds = {}
        for name, call in calls.items():
            start = time.perf_counter()
            how(call)
            cost = time.perf_counter() - start
            rounds[name] = min(max(int(share / cost), ROUNDS[0]), ROUNDS[1])
        most, found = max(rounds.values(), default=0), {name: list[float]() for name in calls}
        for turn in range(most):
            for name, call in calls.items():
                if turn * rounds[name] // most >= len(found[name]):
                    found[name].append(how(call))
        return {name: Spread.of(times) for name, times in found.items()}

    def host(self, call: Call) -> Spread:
        """Seconds a call takes end to end when called one after the other without a graph: what the host adds shows."""
        times, calls = list[float](), 20 if self.gpu else 2
        for _ in range(ROUNDS[0]):
            synchronize(self.device)
            start = time.perf_counter()
            for _ in range(calls):
                call()
            synchronize(self.device)
            times.append((time.perf_counter() - start) / calls)
        return Spread.of(times)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """The largest ||actual - expected|| / ||expected|| over rows and heads; [T, Hq, D] both. NaN where one is NaN."""
    difference = (actual.double() - expected).norm(dim=-1)
    return float((difference / expected.norm(dim=-1)).max())


def first_line(error: BaseException) -> str:
    """The first line of an error's text, so that a table can hold it."""
    lines = str(error).strip().splitlines()
    return lines[0].strip()[:200] if lines else ""
