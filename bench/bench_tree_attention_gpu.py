"""The grid of bench/gpu as pytest sees it: `pytest bench/bench_tree_attention_gpu.py --benchmark` on a GPU.

Every cell that ten minutes hold, against everybody who can run here; `bash bench/gpu.sh` times the same and writes
bench/RESULTS.md. Without the flag results are checked; without a GPU on two cells small enough for a CPU.
"""

from __future__ import annotations

import pytest
import torch

from gpu import grid
from gpu.measure import Rules, measure
from gpu.timing import Clock

GPU = torch.cuda.is_available()
CELLS = grid.quick() if GPU else ["8/2 1,3|64,20", "4/4 2,4|32,~9"]


@pytest.fixture(scope="module")
def clock() -> Clock:
    return Clock(torch.device("cuda" if GPU else "cpu"))


@pytest.mark.parametrize("name", CELLS)
def test_cell(request, table, clock, name):
    timing = request.config.getoption("--benchmark") and GPU
    row = measure(grid.parse_cell(name), clock, torch.bfloat16, Rules({}), seconds=1.5 if timing else 0)
    # On a GPU a peer may fail for want of a compiler; torch's own on a CPU may not.
    assert {entry.name: entry.reason for entry in row.entries if entry.failed and (entry.ours or not GPU)} == {}
    ours, best = row.entry("tree_attention"), row.best_peer
    assert ours is not None and ours.flushed is not None and best is not None and best.flushed is not None
    if timing:
        table.add(
            {
                "cell": name.replace("|", "\\|"),
                "MB": row.bytes / 1e6,
                "us": 1e6 * ours.flushed.median,
                "p20": 1e6 * ours.flushed.p20,
                "p80": 1e6 * ours.flushed.p80,
                "GB/s": row.bytes / ours.flushed.median / 1e9,
                "best peer": best.name,
                "x": best.flushed.median / ours.flushed.median,
            }
        )
