"""A training step on tree-packed episodes against one row per trace, over how much the traces of an episode share.

`pytest bench/bench_training.py --benchmark` times the forward and backward pass of a small Qwen3 decoder; a CUDA device
is used where there is one (FlexAttention, bfloat16), else the CPU (float32). An episode is a prompt, an organizer that
forks all workers behind it, and the workers; each agent writes OWN tokens. Both sides run the same code with the same
attention, without padding: "rows" gives every trace its whole context as tokens of its own, as a trainer without trees
does. Tokens a second count each token of the tree once on both sides; "sharing" is tokens of the rows over tokens of
the tree: what is to be gained where every token costs the same. Both must give the same loss and gradients, which is
all that is checked without the flag.
"""

from __future__ import annotations

import random
import statistics
import time
from dataclasses import replace

import pytest
import torch

from asyncthink.train.loading import Shape, random_model
from asyncthink.train.logprobs import token_logprobs
from asyncthink.train.packed_attention import use_packed_attention
from asyncthink.train.packing import Batch, Row, pack
from asyncthink.train.tokenizer import build_tokenizer

OWN = 256
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SMALL = Shape(layers=1, hidden=32, heads=2, kv_heads=1, head_dim=16, intermediate=32)
LARGE = Shape(layers=12, hidden=1024, heads=16, kv_heads=8, head_dim=64, intermediate=3072)
TIMED = LARGE if DEVICE.type == "cuda" else Shape()
TOLERANCE = 1e-3  # of a float32 gradient, relative to its norm


def episode(prefix: int, workers: int, own: int) -> list[Row]:
    """An organizer that writes ``own`` tokens behind a prompt of ``prefix``, and workers that see the prompt."""
    rng = random.Random(0)
    tokens = tuple(rng.randrange(50, 500) for _ in range(prefix + own))
    root = Row("organizer", "shared", tokens, (False,) * prefix + (True,) * own)
    return [root, *(_worker(rng, prefix, own) for _ in range(workers))]


def _worker(rng: random.Random, prefix: int, own: int) -> Row:
    tokens = tuple(rng.randrange(50, 500) for _ in range(own + 1))
    return Row("worker", "shared", tokens, (False,) + (True,) * own, 0, prefix)


def one_row_per_trace(rows: list[Row]) -> list[Row]:
    """The same traces, each with all that it sees as tokens of its own."""
    made = []
    for row in rows:
        before = rows[row.parent].tokens[: row.fork_at] if row.parent is not None else ()
        learned = (False,) * len(before) + row.learned
        made.append(replace(row, tokens=before + row.tokens, learned=learned, parent=None, fork_at=0))
    return made


def step(model: torch.nn.Module, batch: Batch) -> float:
    model.zero_grad()
    with torch.autocast(DEVICE.type, torch.bfloat16, enabled=DEVICE.type == "cuda"):
        loss = -token_logprobs(model, batch).sum()
    loss.backward()
    return float(loss.detach())


def seconds(model: torch.nn.Module, batch: Batch) -> float:
    start = time.perf_counter()
    step(model, batch)  # its result is read, so it is over
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


@pytest.fixture(scope="module")
def model(request: pytest.FixtureRequest) -> torch.nn.Module:
    made = random_model(TIMED if request.config.getoption("--benchmark") else SMALL, build_tokenizer(), 0).to(DEVICE)
    use_packed_attention(made)
    return made


@pytest.mark.quick(workers=[4], prefix=[1024])
@pytest.mark.parametrize("workers", [2, 4, 8])
@pytest.mark.parametrize("prefix", [256, 1024, 2048])
def test_tree_against_rows(benchmark, table, model, prefix, workers):
    timed = benchmark.enabled
    shared = episode(prefix, workers, OWN) if timed else episode(prefix // 16, workers, OWN // 16)
    tree, rows = (pack([made], 1).to(DEVICE) for made in (shared, one_row_per_trace(shared)))
    check(model, tree, rows)
    pairs = []

    def both() -> None:
        pairs.append((seconds(model, tree), seconds(model, rows)))

    benchmark.pedantic(both, rounds=5 if timed else 1, warmup_rounds=1 if timed else 0)
    size, copied = tree.tokens.numel(), rows.tokens.numel()
    ratios = sorted(b / a for a, b in pairs[-7:])
    if timed:
        table.add(
            {
                "prefix": prefix,
                "workers": workers,
                "tokens of the tree": size,
                "sharing": copied / size,
                "tree tokens/s": size / statistics.median(a for a, _ in pairs),
                "rows tokens/s": size / statistics.median(b for _, b in pairs),
                "faster (median)": statistics.median(ratios),
                "p20": ratios[1],
                "p80": ratios[-2],
                "device": torch.cuda.get_device_name() if DEVICE.type == "cuda" else "CPU",
            }
        )


def check(model: torch.nn.Module, tree: Batch, rows: Batch) -> None:
    """Loss and gradients are the same, up to the rounding of the arithmetic that is used."""
    tolerance = TOLERANCE if DEVICE.type == "cpu" else 5e-2
    loss = step(model, rows)
    expected = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    assert step(model, tree) == pytest.approx(loss, rel=tolerance)
    got = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    for one, other in zip(got, expected, strict=True):
        assert float((one - other).norm()) <= tolerance * float(other.norm())
