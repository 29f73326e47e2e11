"""Tree attention against torch: one decoding step of B branches behind a shared prefix.

`pytest bench/bench_tree_attention.py --benchmark` times 32 query heads on 8 kv heads of 128, suffixes of 128 tokens.
Without the flag a smaller prefix is used and only results are checked.

A cell's limit is the larger of its K/V bytes read once over the measured bandwidth and its operations over the measured
peak (limits.py).
"""

from __future__ import annotations

import statistics
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from asyncthink_kernels import tree_attention
from asyncthink_kernels.cache import KVStorage, LayerShape, TreeCache
from asyncthink_kernels.testing import TOLERANCE
from clock import Call
from contest import DEVICE, Cell, parts
from peers import Shared

H, G, D, SUFFIX, PAGE = 8, 4, 128, 128, 16
BRANCHES, PREFIXES, DTYPES = (1, 4, 8, 16), (1024, 8192, 32768), (torch.bfloat16, torch.float32)


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
    return lambda layer: tree_attention(q, storage.k(layer), storage.v(layer), plan), peers


@pytest.mark.skipif(DEVICE.type != "cpu", reason="bench_tree_grid.py does it there")
@pytest.mark.quick(branches=[1, 8], prefix=[8192], dtype=[torch.bfloat16])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("branches", BRANCHES)
def test_decoding_step(timed, contest, table, peers, branches, prefix, dtype):
    table.summary = summary
    if not timed:
        prefix //= 64
    context = prefix + SUFFIX
    ours, layers = problem(branches, prefix, dtype, parts(2 * context * H * D * dtype.itemsize, timed))

    def on_layer(peer: Callable[[Shared], Tensor]) -> Call:
        return lambda layer: peer(layers[layer])

    cell = Cell(
        shape=f"{branches} x {prefix}",
        dtype=dtype,
        ours=ours,
        peers={name: on_layer(peer) for name, peer in peers.items()},
        parts=len(layers),
        read=2 * (prefix + branches * SUFFIX) * H * D * dtype.itemsize,
        written=0,
        operations=4 * branches * H * G * D * context,
        limit=2 * TOLERANCE[dtype].out,
    )
    contest(cell)


def summary(rows: list[dict[str, str | float]]) -> str:
    """How the fastest peer of each cell stands to ours, and ours to the limit."""
    fastest = [min((float(row[name]) for name in row if name.startswith("x ")), default=float("nan")) for row in rows]
    text = f"Fastest peer over ours: geometric mean {statistics.geometric_mean(fastest):.2f}, least {min(fastest):.2f}."
    over = [100 / float(row["% of limit"]) for row in rows if float(row["median us"]) > 1000]
    if over:
        text += f" Ours over the limit in the {len(over)} cells above 1 ms: {min(over):.2f} to {max(over):.2f}."
    return text
