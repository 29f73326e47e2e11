"""paged_attention against torch: one query of each sequence over its own pages.

`pytest bench/bench_paged_attention.py --benchmark` times 16 query heads on 8 kv heads of 128 (Qwen3-0.6B): one sequence
of 4,096 tokens, 8 of unequal lengths up to 2,048, 16 of 4,096. "gather + sdpa" gathers the pages of a batch and calls
torch's attention; "dense sdpa" finds K and V gathered and padded already, as a cache without pages holds them. Without
the flag results are checked on short sequences.
"""

from __future__ import annotations

import pytest
import torch

from asyncthink_kernels import paged_attention
from asyncthink_kernels.testing import TOLERANCE
from contest import DEVICE, Cell, caches, parts
from peers import Sequences

H, G, PAGE = 8, 2, 16
#: Lengths of the sequences.
BATCHES = {
    "1 x 4096": [4096],
    "8 x 599..2048": list(range(599, 2049, 207)),
    "16 x 4096": [4096] * 16,
}


def problem(lengths: list[int], D: int, dtype: torch.dtype) -> Sequences:
    """Pages in random places; dense K and V hold the same numbers."""
    B, longest = len(lengths), max(lengths)
    M = -(-longest // PAGE)
    L = M * PAGE
    k, v = (cache.view(B, H, L, D) for cache in caches(1, B * H, L, 1, D, dtype))
    k_cache, v_cache = (cache[0] for cache in caches(1, B * M, PAGE, H, D, dtype))
    tables = torch.randperm(B * M, device=DEVICE).view(B, M)
    for dense, cache in ((k, k_cache), (v, v_cache)):
        cache[tables] = dense.transpose(1, 2).view(B, M, PAGE, H, D)
    seen = torch.arange(L, device=DEVICE) < torch.tensor(lengths, device=DEVICE)[:, None]
    mask = torch.zeros(seen.shape, dtype=dtype, device=DEVICE).masked_fill_(~seen, -torch.inf)[:, None, None]
    return Sequences(
        q=torch.randn(B, H * G, D, device=DEVICE).to(dtype),
        k_cache=k_cache,
        v_cache=v_cache,
        tables=tables.int(),
        lengths=torch.tensor(lengths, dtype=torch.int32, device=DEVICE),
        k=k,
        v=v,
        mask=None if seen.all() else mask,
    )


@pytest.mark.quick(batch=["8 x 599..2048"], dtype=[torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("batch", list(BATCHES))
def test_decoding_step(timed, contest, peers, batch, dtype):
    lengths, D = (BATCHES[batch], 128) if timed else ([-(-n // 32) for n in BATCHES[batch]], 16)
    tokens = sum(lengths)
    bytes_read = 2 * tokens * H * D * dtype.itemsize
    layers = [problem(lengths, D, dtype) for _ in range(parts(bytes_read, timed))]

    def ours(part: int) -> torch.Tensor:
        x = layers[part]
        return paged_attention(x.q, x.k_cache, x.v_cache, x.tables, x.lengths)

    contest(
        Cell(
            shape=f"{batch} tokens, {H * G} on {H} x {D}" if timed else f"{lengths}",
            dtype=dtype,
            ours=ours,
            peers={name: lambda part, peer=peer: peer(layers[part]) for name, peer in peers.items()},
            parts=len(layers),
            read=bytes_read + layers[0].q.nbytes,
            written=layers[0].q.nbytes,
            operations=4 * tokens * H * G * D,
            limit=2 * TOLERANCE[dtype].out,
        )
    )
