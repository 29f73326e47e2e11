"""Drawing a token for each row of logits over a vocabulary of 151,936 (Qwen3), with its log-probability.

`pytest bench/bench_sample.py --benchmark` times 1, 4 and 64 rows with four settings. Peers draw with random numbers of
their own and give no log-probability: they are timed and not compared. Ours must take the reference's tokens.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from asyncthink_kernels import sample
from contest import DEVICE, Cell, parts
from peers_sample import Draw

V = 151_936
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "top-k 50": {"top_k": 50},
    "top-p 0.95": {"top_p": 0.95},
    "greedy": {"temperature": 0.0},
}


@pytest.mark.quick(rows=[4], setting=["top-p 0.95"])
@pytest.mark.parametrize("setting", list(SETTINGS))
@pytest.mark.parametrize("rows", [1, 4, 64])
def test_drawing(timed, contest, peers, rows, setting):
    n = parts(rows * V * 4, timed)
    draws = [Draw(3 * torch.randn(rows, V, device=DEVICE), **SETTINGS[setting]) for _ in range(n)]
    numbers = torch.randint(1 << 40, (3, rows), device=DEVICE)
    one = draws[0]
    shares = torch.tensor([one.temperature, one.top_p, 0.0]).view(3, 1).repeat(1, rows).to(DEVICE)
    top_k = torch.full((rows,), one.top_k, dtype=torch.int32, device=DEVICE)

    def ours(part: int) -> tuple[torch.Tensor, torch.Tensor]:
        return sample(draws[part].logits, *numbers, shares[0], top_k, shares[1], shares[2])

    cell = Cell(
        shape=f"{rows} rows, {setting}",
        dtype=torch.float32,
        ours=ours,
        peers={name: lambda part, peer=peer: peer(draws[part]) for name, peer in peers.items()},
        parts=n,
        read=rows * V * 4,
        written=0,
        limit=1e-4,  # of log-probabilities; tokens are whole numbers
        compared=False,
    )
    contest(cell)
