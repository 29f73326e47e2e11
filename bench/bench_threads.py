"""What sharing torch's threads is worth: our op and a torch op in turn, against each of them alone.

    python bench/bench_threads.py [--threads N]

A step of a decoder alternates torch's matmuls with our ops. If both ran on pools of their own, the idle pool's threads
would spin on the cores the other needs. So the time of the alternating loop over the sum of the two loops alone should
be what it is for two ops of torch: the control reads the same memory with torch, and shows what two ops cost each
other through the caches. A thread that came or went between them would show in the count of threads.
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


def control() -> None:
    torch.sum(STATES[0], 0)


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

    print(f"{native.note('cpu')}; {len(os.listdir('/proc/self/task'))} threads in the process")
    for name, op in (("merge_states", our_op), ("torch.sum (control)", control)):
        ratio, alone, turn = alternate(op, arguments.rounds)
        print(f"{name:20} alone {alone:7.1f} us, torch.mm and it in turn {turn:7.1f} us: {ratio:.3f} of the sum")


def alternate(op: Callable[[], None], rounds: int) -> tuple[float, float, float]:
    """(time in turn with torch.mm over the sum of both alone, us of the op alone, us in turn), medians."""

    def in_turn() -> None:
        torch_op()
        op()

    # The three are timed in turn, round by round, so that a machine that slows down slows all of them.
    found = [[seconds(loop) for loop in (torch_op, op, in_turn)] for _ in range(rounds + 2)][2:]
    ratio = statistics.median(turn / (torch_alone + alone) for torch_alone, alone, turn in found)
    _, alone_us, turn_us = (statistics.median(column) * 1e6 for column in zip(*found, strict=True))
    return ratio, alone_us, turn_us


if __name__ == "__main__":
    main()
