"""What a join of 64 tokens costs, and the organizer's next step after it, on the Qwen3-0.6B shape (bfloat16).

`exact` computes the tokens again in the organizer's context: that is the re-prefill the other two are compared with.
`append` copies K, rotated, and V; `link` reads them where they lie, so its cost comes with later steps: they are timed,
too. The modes take turns. Without `--benchmark` a tiny model joins, and what it says next must be near `exact`.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections import defaultdict

import pytest
import torch

from asyncthink.episode.options import JoinMode
from asyncthink.model.decoder import Decoder
from asyncthink_kernels.cache import Branch
from random_models import SHAPE, TINY, random_qwen3

JOINED, WORKERS = 64, 4


def feed(decoder: Decoder, branch: Branch, tokens: torch.Tensor) -> torch.Tensor:
    """Logits [V] of the last of ``tokens``."""
    return decoder.forward(tokens, decoder.cache.plan([(branch, len(tokens))]), [len(tokens) - 1])[0]


def episode(decoder: Decoder, root: Branch, workers: list[Branch], returns: torch.Tensor, mode: str) -> list[float]:
    """Seconds of the four joins, of the next step, and of the one after, of an organizer that begins at ``root``."""
    organizer, token = decoder.cache.fork(root), torch.tensor([7])
    start = time.perf_counter()
    for worker, tokens in zip(workers, returns, strict=True):
        if mode == "exact":
            feed(decoder, organizer, tokens)
        else:
            decoder.join(organizer, worker, worker.length - JOINED, worker.length, mode)
    marks = [start, time.perf_counter()]
    for _ in range(2):
        feed(decoder, organizer, token)
        marks.append(time.perf_counter())
    decoder.cache.release(organizer)
    return [after - before for before, after in itertools.pairwise(marks)]


@pytest.mark.quick(prefix=[512])
@pytest.mark.parametrize("prefix", [512, 4096])
def test_four_joins(benchmark, table, quick, prefix):
    timed = benchmark.enabled
    model = random_qwen3(SHAPE if timed else TINY, torch.bfloat16 if timed else torch.float32)
    prefix = prefix if timed else 48
    decoder = Decoder(model, num_pages=prefix // 16 + 64)
    vocabulary = model.config.vocab_size
    root = decoder.cache.root()
    feed(decoder, root, torch.randint(vocabulary, (prefix,)))
    workers = [decoder.cache.fork(root) for _ in range(WORKERS)]
    returns = torch.randint(vocabulary, (WORKERS, JOINED))
    for worker, tokens in zip(workers, returns, strict=True):
        feed(decoder, worker, tokens)
    found: dict[str, list[list[float]]] = defaultdict(list)

    def in_turn() -> None:
        for mode in JoinMode:
            found[mode].append(episode(decoder, root, workers, returns, mode))

    benchmark.pedantic(in_turn, rounds=(3 if quick else 6) if timed else 1, warmup_rounds=1 if timed else 0)
    held = decoder.cache.used_pages
    decoder.cache.release(root)
    for worker in workers:
        decoder.cache.release(worker)
    assert held and decoder.cache.used_pages == 0
    if not timed:
        return
    columns = {m: [1e3 * statistics.median(c) for c in zip(*rows, strict=True)] for m, rows in found.items()}
    for mode, (joins, following, later) in columns.items():
        row = {
            "prefix": prefix,
            "join": mode,
            "four joins ms": joins,
            "next step ms": following,
            "later step ms": later,
            "re-prefill over joins": columns["exact"][0] / joins,
        }
        benchmark.extra_info[mode] = row
        table.add(row)
