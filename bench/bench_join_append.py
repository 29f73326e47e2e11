"""join_append against gather, rotate and scatter in torch: a worker's return into the organizer's pages, 28 layers.

`pytest bench/bench_join_append.py --benchmark` times returns of 64 and 1,024 tokens for 8 kv heads of 128. The column
"prefill again GFLOP" is what an exact join multiplies in the linear layers of a Qwen3-0.6B to compute the same K and V;
the join computes none of it. Without the flag results are checked on few layers.
"""

from __future__ import annotations

import pytest
import torch

from asyncthink_kernels import join_append
from asyncthink_kernels.testing import TOLERANCE, angles
from contest import DEVICE, Cell, caches, parts

PAGE, SHIFT = 16, 321
HIDDEN, HEADS, INTERMEDIATE = 1024, 16, 3072  # Qwen3-0.6B


def prefill_operations(tokens: int, L: int, H: int, D: int) -> int:
    """Of the linear layers: q and o, k and v, and three of the MLP."""
    weights = 2 * HIDDEN * HEADS * D + 2 * HIDDEN * H * D + 3 * HIDDEN * INTERMEDIATE
    return 2 * tokens * L * weights


@pytest.mark.quick(dtype=[torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("tokens", [64, 1024])
def test_join(timed, contest, peers, tokens, dtype):
    L, H, D = (28, 8, 128) if timed else (2, 2, 16)
    bytes_written = 2 * L * tokens * H * D * dtype.itemsize  # of K and V; as many are read
    number = parts(2 * bytes_written, timed)
    k, v = caches(L, 2 * number * tokens // PAGE, PAGE, H, D, dtype)
    runs = torch.randperm(2 * number * tokens // PAGE)[:, None] * PAGE + torch.arange(PAGE)  # pages lie anywhere
    src, dst = runs.view(2, number, tokens).to(DEVICE)
    turn = [each.to(DEVICE) for each in angles(torch.full((L,), SHIFT), D // 2)]
    contest(
        Cell(
            shape=f"{tokens} tokens, {L} layers, {H} x {D}",
            dtype=dtype,
            ours=lambda part: join_append(k, v, src[part], dst[part], *turn),
            peers={
                name: lambda part, peer=peer: peer(k, v, src[part], dst[part], *turn) for name, peer in peers.items()
            },
            parts=number,
            read=bytes_written,
            written=bytes_written,
            memory=(k, v),
            limit=2 * TOLERANCE[dtype].out,
            more={"prefill again GFLOP": prefill_operations(tokens, L, H, D) / 1e9},
        )
    )
