"""Greedy decoding beside transformers' continuous batching: B requests behind one prefix, which both compute once.

`pytest bench/bench_continuous.py --benchmark` runs the Qwen3-0.6B shape (bfloat16, random weights). Continuous batching
runs in a thread of its own and cannot be stepped: it decodes its requests between two halves of our steps. A step of
ours includes taking the most likely token. Without the flag a tiny model runs, and both must write the same tokens.
"""

from __future__ import annotations

import time

import pytest
import torch

import machine
from bench_generation import columns
from clock import Spread
from engines import MOST_BRANCHES
from engines.continuous import served
from engines.ours import Ours
from random_models import SHAPE, TINY, random_qwen3

NEW = {512: 12, 4096: 8}  # tokens of a request; at 4,096 a step of 8 takes continuous batching more than a second
STEPS = 24  # of ours, half of them before the peer and half behind


@pytest.mark.quick(prefix=[])  # none: the prefix alone takes ten seconds
@pytest.mark.parametrize(("prefix", "branches"), [(512, (1, 4, 8)), (4096, (1, 8))], ids=["512", "4096"])
def test_requests(benchmark, table, engines, prefix, branches):
    if not engines:
        pytest.skip("continuous batching is not asked for")
    timed, new = benchmark.enabled, NEW[prefix]
    model = random_qwen3(SHAPE if timed else TINY, torch.bfloat16 if timed else torch.float32)
    prefix = prefix if timed else prefix // 4
    tokens = torch.randint(model.config.vocab_size, (prefix,), generator=torch.Generator().manual_seed(0)).tolist()
    ours = Ours(model, prefix)
    ours.prefill(tokens)

    def all_counts() -> None:
        for count in branches:
            before = greedy(ours, count, STEPS // 2)
            theirs = peer.steps(count, new)
            after = greedy(ours, count, STEPS // 2)
            if timed:
                table.add(row(count, prefix, Spread.of(before[0] + after[0]), Spread.of(theirs[0])))
            else:
                assert [each[:new] for each in before[1]] == theirs[1]

    with served(model, tokens, MOST_BRANCHES) as peer:
        benchmark.pedantic(all_counts)
    benchmark.extra_info["rows"] = table.rows
    table.note(
        "transformers' continuous batching: paged SDPA, the prefix's blocks shared; a step is the median time between "
        "two tokens of a request while all decode."
    )


def greedy(ours: Ours, count: int, steps: int) -> tuple[list[float], list[list[int]]]:
    """Seconds of each step, and the tokens of each branch; branch k begins with token k."""
    ours.branch(count)
    tokens, written, seconds = list(range(count)), [], []
    for _ in range(steps):
        start = time.perf_counter()
        tokens = torch.stack(list(ours.step(tokens))).argmax(-1).tolist()
        seconds.append(time.perf_counter() - start)
        written.append(tokens)
    return seconds[1:], [list(each) for each in zip(*written, strict=True)]


def row(count: int, prefix: int, ours: Spread, theirs: Spread) -> dict[str, str | float]:
    return columns(ours, count, prefix) | {
        "continuous batching tokens/s": count / theirs.median,
        "x continuous batching": theirs.median / ours.median,
        "device": machine.device(),
        "threads": machine.threads(),
    }
