"""copy_pages against torch's index_copy_ and index_put_: whole pages of 28 layers from place to place.

`pytest bench/bench_copy_pages.py --benchmark` times 1, 16 and 64 pages of 16 tokens for 8 kv heads of 128 (Qwen3-0.6B).
Without the flag results are checked on few layers.
"""

from __future__ import annotations

import pytest
import torch

from asyncthink_kernels import copy_pages
from contest import DEVICE, Cell, caches, parts

PAGE = 16


@pytest.mark.quick(pages=[1, 64], dtype=[torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("pages", [1, 16, 64])
def test_copy(timed, contest, peers, pages, dtype):
    L, H, D = (28, 8, 128) if timed else (2, 2, 16)
    bytes_written = 2 * L * pages * PAGE * H * D * dtype.itemsize  # of K and V; as many are read
    number = parts(2 * bytes_written, timed)
    k, v = caches(L, 2 * number * pages, PAGE, H, D, dtype)
    src, dst = torch.randperm(2 * number * pages, device=DEVICE).view(2, number, pages)
    contest(
        Cell(
            shape=f"{pages} pages of {PAGE}, {L} layers, {H} x {D}",
            dtype=dtype,
            ours=lambda part: copy_pages(k, v, src[part], dst[part]),
            peers={name: lambda part, peer=peer: peer(k, v, src[part], dst[part]) for name, peer in peers.items()},
            parts=number,
            read=bytes_written,
            written=bytes_written,
            memory=(k, v),
        )
    )
