"""What sharing torch's threads is worth: our op and a torch op in turn, against each of them alone.

    python bench/bench_threads.py [--threads N]

A step of a decoder alternates torch's matmuls with our ops. If both ran on pools of their own, the idle pool's threads
would spin on the cores the other needs. So the time of the alternating loop over the sum of the two loops alone should
be 1.0; and a thread that came or went between them would show in the count of threads.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

import torch

from asyncthink_kernels.backends import native

#: A torch op and our op of about half a millisecond each: long enough for every thread to take part.
MATMUL = torch.randn(384, 1024), torch.randn(1024, 1024)
STATES = torch.randn(8, 512, 8, 64), torch.randn(8, 512, 8)
MERGED = torch.empty(512, 8, 64), torch.empty(512, 8)


def torch_op() -> None:
    torch.mm(*MATMUL)


def our_op() -> None:
    native.merge_states(*STATES, *MERGED)


def both() -> None:
    torch_op()
    our_op()


def median_us(call: Callable[[], None], seconds: float = 1.0) -> float:
    """Median time of a call, warm, in microseconds."""
    times = []
    end = time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times[len(times) // 4 :]) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    torch.set_num_threads(parser.parse_args().threads)
    torch_alone, ours_alone, alternating = (median_us(call) for call in (torch_op, our_op, both))
    print(f"{native.note('cpu')}; {len(os.listdir('/proc/self/task'))} threads in the process")
    print(f"torch.mm alone      {torch_alone:8.1f} us")
    print(f"merge_states alone  {ours_alone:8.1f} us")
    print(f"in turn             {alternating:8.1f} us, {alternating / (torch_alone + ours_alone):.3f} of the sum")


if __name__ == "__main__":
    main()
