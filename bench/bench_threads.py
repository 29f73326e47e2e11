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
MATMUL = torch.randn(64, 1024), torch.randn(1024, 1024)
STATES = torch.randn(8, 512, 8, 64), torch.randn(8, 512, 8)
MERGED = torch.empty(512, 8, 64), torch.empty(512, 8)


def torch_op() -> None:
    torch.mm(*MATMUL)


def our_op() -> None:
    native.merge_states(*STATES, *MERGED)


def seconds(call: Callable[[], None], calls: int = 20) -> float:
    """Mean time of a call, over a run of them."""
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=100)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    def in_turn() -> None:
        torch_op()
        our_op()

    # The three are timed in turn, round by round, so that a machine that slows down slows all of them.
    loops = (torch_op, our_op, in_turn)
    rounds = [[seconds(loop) for loop in loops] for _ in range(arguments.rounds + 2)][2:]
    ratio = statistics.median(turn / (torch_alone + ours_alone) for torch_alone, ours_alone, turn in rounds)
    torch_us, ours_us, turn_us = (statistics.median(column) * 1e6 for column in zip(*rounds, strict=True))
    print(f"{native.note('cpu')}; {len(os.listdir('/proc/self/task'))} threads in the process")
    print(f"torch.mm alone      {torch_us:8.1f} us")
    print(f"merge_states alone  {ours_us:8.1f} us")
    print(f"in turn             {turn_us:8.1f} us, {ratio:.3f} of the sum")


if __name__ == "__main__":
    main()
