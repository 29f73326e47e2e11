"""Tree attention against torch: one decoding step of B branches behind a shared prefix.

    pytest bench/bench_tree_attention.py --benchmark [--results bench/results]

times 32 query heads on 8 kv heads of 128, suffixes of 128 tokens; `--results` also writes the table as Markdown and
JSON. Without `--benchmark` a smaller prefix is used and only results are checked.

A cell's limit is the larger of its K/V bytes read once over the measured bandwidth and its operations over the measured
peak (limits.py). Successive calls go through the layers of a cache that is larger than the chip's, so that every call
finds K and V in memory, as in a model. Ours and the peers are timed in turn: a machine that slows down slows them all.
"""

from __future__ import annotations

import itertools
import json
import math
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from asyncthink_kernels import dispatch, tree_attention
from asyncthink_kernels.cache import KVStorage, LayerShape, TreeCache
from asyncthink_kernels.testing import TOLERANCE, compare
from limits import Limits, measured
from peers import PEERS, Shared

H, G, D, SUFFIX, PAGE = 8, 4, 128, 128, 16
BRANCHES, PREFIXES, DTYPES = (1, 4, 8, 16), (1024, 8192, 32768), (torch.bfloat16, torch.float32)
LAYER_BYTES = 128 << 20  # K and V of all layers, at least
SECONDS, ROUNDS = 1.0, (5, 60)  # for each contestant in a cell; fewest and most rounds


@dataclass(frozen=True)
class Cell:
    """Times in seconds; `peers` are medians."""

    dtype: str
    branches: int
    prefix: int
    median: float
    p20: float
    p80: float
    limit: float
    bytes_read: int
    peers: dict[str, float]

    @property
    def best_peer(self) -> float:
        return min(self.peers.values())


def problem(
    branches: int, prefix: int, dtype: torch.dtype, layers: int
) -> tuple[Callable[[int], Tensor], list[Shared]]:
    """A call of ours on a layer, and the same problem for the peers, layer by layer."""
    context, pages = prefix + SUFFIX, (prefix + branches * (SUFFIX + PAGE)) // PAGE + 1
    cache = TreeCache(pages, PAGE)
    storage = KVStorage([LayerShape(H, D, D)] * layers, pages, PAGE, dtype)
    mirror = KVStorage([LayerShape(1, D, D)] * layers, H * context // PAGE, PAGE, dtype)  # huge pages as well

    def write(slots: Tensor, begin: int, end: int) -> None:
        for layer, shared in enumerate(peers):
            for cached, values in ((storage.k(layer), shared.k), (storage.v(layer), shared.v)):
                cached.view(-1, H, D)[slots] = values[:, begin:end].transpose(0, 1)

    for group in mirror.groups:
        group.k.normal_()
        group.v.normal_()
    q = torch.randn(branches, H * G, D).to(dtype)
    peers = [
        Shared(q, mirror.k(layer).view(H, context, D), mirror.v(layer).view(H, context, D), prefix)
        for layer in range(layers)
    ]
    root = cache.root()
    write(cache.plan([(root, prefix)]).slots, 0, prefix)
    workers = [cache.fork(root) for _ in range(branches)]
    for worker in workers:
        write(cache.plan([(worker, SUFFIX - 1)]).slots, prefix, context - 1)
    plan = cache.plan([(worker, 1) for worker in workers])
    for slot in plan.slots:
        write(slot[None], context - 1, context)
    arguments = plan.attention_args()
    return lambda layer: tree_attention(q, storage.k(layer), storage.v(layer), **arguments), peers


def check(ours: Callable[[int], Tensor], shared: Shared, dtype: torch.dtype) -> None:
    with dispatch.use_backend("reference"):
        expected = ours(0)
    tolerance = TOLERANCE[dtype]
    compare(ours(0), expected, limit=tolerance.out, cosine=tolerance.cosine, what="tree_attention")
    for name, peer in PEERS.items():
        compare(peer(shared), expected, limit=2 * tolerance.out, what=name)


def times(contestants: dict[str, Callable[[int], Tensor]], layers: int) -> dict[str, list[float]]:
    """Sorted seconds of each, timed in turn, layer after layer."""
    calls = itertools.count()

    def seconds(call: Callable[[int], Tensor]) -> float:
        layer = next(calls) % layers
        start = time.perf_counter()
        call(layer)
        return time.perf_counter() - start

    rounds = {}
    for name, call in contestants.items():
        seconds(call)
        rounds[name] = min(max(int(SECONDS / seconds(call)), ROUNDS[0]), ROUNDS[1])
    found: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(max(rounds.values())):
        for name, call in contestants.items():
            if turn * rounds[name] // max(rounds.values()) >= len(found[name]):
                found[name].append(seconds(call))
    return {name: sorted(column) for name, column in found.items()}


def measure(ours: Callable[[int], Tensor], layers: list[Shared], limits: Limits) -> Cell:
    def on_layer(peer: Callable[[Shared], Tensor]) -> Callable[[int], Tensor]:
        return lambda layer: peer(layers[layer])

    shared = layers[0]
    found = times({"ours": ours, **{name: on_layer(peer) for name, peer in PEERS.items()}}, len(layers))
    mine = found.pop("ours")
    B, dtype, context = shared.q.shape[0], shared.q.dtype, shared.prefix + SUFFIX
    bytes_read = 2 * (shared.prefix + B * SUFFIX) * H * D * dtype.itemsize
    return Cell(
        dtype=str(dtype).removeprefix("torch."),
        branches=B,
        prefix=shared.prefix,
        median=statistics.median(mine),
        p20=mine[len(mine) // 5],
        p80=mine[len(mine) * 4 // 5],
        limit=limits.seconds(bytes_read, 4 * B * H * G * D * context, dtype),
        bytes_read=bytes_read,
        peers={name: statistics.median(column) for name, column in found.items()},
    )


@pytest.fixture(scope="module")
def cells(request: pytest.FixtureRequest) -> Iterator[list[Cell]]:
    """Collects the cells; at the end prints the table, and writes it where `--results` says."""
    found: list[Cell] = []
    yield found
    if not found:
        return
    text = report(found)
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print(f"\n{text}")
    folder = request.config.getoption("--results")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / "tree_attention.md").write_text(text)
        data = {"limits": asdict(measured()), "cells": [asdict(cell) for cell in found]}
        (Path(folder) / "tree_attention.json").write_text(json.dumps(data, indent=1) + "\n")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("branches", BRANCHES)
def test_decoding_step(benchmark, request, cells, branches, prefix, dtype):
    timing = request.config.getoption("--benchmark")
    if not timing:
        prefix //= 64
    layer_bytes = 2 * (prefix + SUFFIX) * H * D * dtype.itemsize
    ours, layers = problem(branches, prefix, dtype, layers=1 + LAYER_BYTES // layer_bytes if timing else 1)
    check(ours, layers[0], dtype)
    benchmark.pedantic(ours, args=(0,), rounds=5, warmup_rounds=1)
    if timing:
        cells.append(measure(ours, layers, measured()))
        benchmark.extra_info.update(asdict(cells[-1]))


def report(cells: list[Cell]) -> str:
    limits, names = measured(), list(PEERS)
    lines = [
        f"{_processor()}, {torch.get_num_threads()} threads, {dispatch_note()}, torch {torch.__version__}; "
        f"measured {limits.bandwidth / 1e9:.1f} GB/s, {limits.bf16 / 1e9:.0f} GFLOP/s bfloat16, "
        f"{limits.f32 / 1e9:.0f} GFLOP/s float32",
        "",
        "| dtype | B | prefix | median ms | p20 | p80 | GB/s | x limit | "
        + " | ".join(f"{name} ms (x)" for name in names)
        + " |",
        "|---" * (8 + len(names)) + "|",
    ]
    for cell in sorted(cells, key=lambda c: (c.dtype, c.branches, c.prefix)):
        ms = [f"{1e3 * t:.3f}" for t in (cell.median, cell.p20, cell.p80)]
        peers = [f"{1e3 * cell.peers[name]:.2f} ({cell.peers[name] / cell.median:.1f})" for name in names]
        rate, share = cell.bytes_read / cell.median / 1e9, cell.median / cell.limit
        fields = [cell.dtype, cell.branches, cell.prefix, *ms, f"{rate:.1f}", f"{share:.2f}", *peers]
        lines.append("| " + " | ".join(map(str, fields)) + " |")
    ratios = [cell.best_peer / cell.median for cell in cells]
    long = [cell.median / cell.limit for cell in cells if cell.median > 1e-3]
    mean = math.exp(statistics.fmean(map(math.log, ratios)))
    lines += ["", f"Fastest peer over ours: geometric mean {mean:.2f}, least {min(ratios):.2f}."]
    if long:
        lines.append(f"Ours over the limit in the {len(long)} cells above 1 ms: {min(long):.2f} to {max(long):.2f}.")
    return "\n".join(lines) + "\n"


def dispatch_note() -> str:
    from asyncthink_kernels.backends import native

    return native.note("cpu")


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()
