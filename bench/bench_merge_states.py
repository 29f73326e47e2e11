"""merge_states against softmax, product and sum in torch, as they come and compiled: partial attention into one.

`pytest bench/bench_merge_states.py --benchmark` times 2 and 8 states of 8 rows (a decoding step) and 512 rows (a
prefill) for 16 heads of 128. Without the flag results are checked on few heads, and nothing is compiled.
"""

from __future__ import annotations

import pytest
import torch

from asyncthink_kernels import merge_states
from asyncthink_kernels.testing import TOLERANCE, normal
from contest import DEVICE, Cell, parts


@pytest.mark.quick(dtype=[torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(("states", "rows"), [(2, 8), (8, 8), (8, 512)])
def test_merge(timed, contest, peers, states, rows, dtype):
    heads, D = (16, 128) if timed else (2, 16)
    one = rows * heads * (D * dtype.itemsize + torch.float32.itemsize)  # bytes of a state: out and LSE
    number = parts((states + 1) * one, timed)
    out = normal((number, states, rows, heads, D), dtype, 0).to(DEVICE)
    lse = normal((number, states, rows, heads), torch.float32, 1).to(DEVICE)
    if not timed:
        peers.pop("compiled", None)
    contest(
        Cell(
            shape=f"{states} states, {rows} rows, {heads} x {D}",
            dtype=dtype,
            ours=lambda part: merge_states(out[part], lse[part]),
            peers={name: lambda part, peer=peer: peer(out[part], lse[part]) for name, peer in peers.items()},
            parts=number,
            read=states * one,
            written=one,
            limit=2 * TOLERANCE[dtype].out,
        )
    )
