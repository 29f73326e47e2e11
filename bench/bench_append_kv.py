"""append_kv against torch's index_copy_ and index_put_: K and V of one layer's new tokens into their slots.

`pytest bench/bench_append_kv.py --benchmark` times a decoding step of 5 and 64 agents, each in a page of its own, and
a prefill of 1,024 tokens, for 8 kv heads of 128 (Qwen3-0.6B). Without the flag results are checked on few heads.
"""

from __future__ import annotations

import pytest
import torch

from asyncthink_kernels import append_kv
from asyncthink_kernels.testing import normal
from contest import DEVICE, Cell, caches, parts

PAGE = 16


@pytest.mark.quick(tokens=[5, 1024], dtype=[torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("tokens", [5, 64, 1024])
def test_append(timed, contest, peers, tokens, dtype):
    H, D = (8, 128) if timed else (2, 16)
    bytes_written = 2 * tokens * H * D * dtype.itemsize  # of K and V; as many are read
    number = parts(2 * bytes_written, timed)
    k, v = normal((2, number, tokens, H, D), dtype, 0).to(DEVICE)
    pages = -(-number * tokens // PAGE)
    cache = caches(1, pages, PAGE, H, D, dtype)
    slots = torch.randperm(pages * PAGE, device=DEVICE)[: number * tokens].view(number, tokens)
    if tokens > 64:  # a prompt fills its pages from front to back
        slots = slots.sort(dim=1).values
    arguments = [(k[part], v[part], cache[0][0], cache[1][0], slots[part]) for part in range(number)]
    contest(
        Cell(
            shape=f"{tokens} tokens, {H} x {D}",
            dtype=dtype,
            ours=lambda part: append_kv(*arguments[part]),
            peers={name: lambda part, peer=peer: peer(*arguments[part]) for name, peer in peers.items()},
            parts=number,
            read=bytes_written,
            written=bytes_written,
            memory=cache,
        )
    )
