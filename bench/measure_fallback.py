"""Milliseconds of a decode step on the paged decoder and on the fallback: ``python bench/measure_fallback.py MODEL``.

1 and 8 branches behind 512 shared tokens; the median of 8 steps after 2. Bytes copied are those of the 8 forks.
"""

from __future__ import annotations

import statistics
import sys
import time
from typing import Any

import torch

from asyncthink.model.choice import load_decoder

PREFIX, STEPS, WARM = 512, 8, 2


def measure(decoder: Any, branches: int) -> float:
    """Milliseconds of a step in which each branch gets one token."""
    cache = decoder.cache
    root = cache.root()
    tokens = torch.arange(PREFIX) % 1000 + 100
    decoder.forward(tokens, cache.plan([(root, PREFIX)]), [])
    forks = [cache.fork(root) for _ in range(branches)]
    seconds = []
    for step in range(WARM + STEPS):
        start = time.perf_counter()
        plan = cache.plan([(fork, 1) for fork in forks])
        decoder.forward(torch.full((branches,), 100 + step), plan, list(range(branches)))
        seconds.append(time.perf_counter() - start)
    for branch in (root, *forks):
        cache.release(branch)
    return 1e3 * statistics.median(seconds[WARM:])


if __name__ == "__main__":
    for fallback in (False, True):
        decoder = load_decoder(sys.argv[1], device="cpu", dtype="float32", fallback=fallback, num_pages=1024)
        times = {branches: measure(decoder, branches) for branches in (1, 8)}
        copied = decoder.counts().get("kv_bytes_copied", 0)
        print(type(decoder).__name__, {n: f"{ms:.1f} ms" for n, ms in times.items()}, f"{copied:,} bytes copied")
