"""One cell of a bench: ours and its peers do the same work; all are checked, then timed in turn.

Ours is timed by pytest-benchmark, so its JSON, comparisons and histograms hold our times; each peer runs once before
each of our calls, on the same clock, so that a machine that slows down slows all of them. Call number n works on part
``n % parts`` of more memory than the chip caches: everybody finds K and V in memory, as in a model.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

import machine
from asyncthink_kernels import use_backend
from asyncthink_kernels.cache import KVStorage, LayerShape
from asyncthink_kernels.testing import compare
from gpu.spread import Spread
from limits import measured

MEMORY = 128 << 20  # bytes that the parts of a cell hold at least, several times the largest cache
ROUNDS = (7, 300)  # fewest and most calls of each
SECONDS, QUICK_SECONDS = 0.3, 0.1  # of each contestant in a cell

#: Runs on part n of the memory; returns tensors, or None where it writes to ``Cell.memory``.
Call = Callable[[int], object]


def parts(bytes_a_call: int, timed: bool) -> int:
    """How many parts of the memory a cell needs; one where nothing is timed."""
    return 1 + MEMORY // bytes_a_call if timed else 1


def caches(L: int, P: int, S: int, H: int, D: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """K and V [L, P, S, H, D] of normal numbers, in memory as the cache's own (huge pages where there are some)."""
    (group,) = KVStorage([LayerShape(H, D, D)] * L, P, S, dtype).groups
    return group.k.normal_(), group.v.normal_()


@dataclass(frozen=True)
class Cell:
    """Work, and who does it.

    ``read`` and ``written`` are the bytes that must move, ``operations`` what must be computed (a multiply-add is two).
    ``memory`` is what calls write to; ``limit`` bounds a peer's and half of it our difference from the reference, with
    0 for bit by bit. Peers that draw random numbers of their own are not ``compared``. ``more`` are further columns.
    """

    shape: str
    dtype: torch.dtype
    ours: Call
    peers: Mapping[str, Call]
    parts: int
    read: int
    written: int
    operations: int = 0
    memory: tuple[Tensor, ...] = ()
    limit: float = 0.0
    compared: bool = True
    more: dict[str, str | float] = field(default_factory=dict)


def check(cell: Cell) -> None:
    """AssertionError unless everybody leaves what the reference leaves, beginning from the same memory."""
    before = [each.clone() for each in cell.memory]

    def left_by(call: Call) -> tuple[Tensor, ...]:
        for tensor, values in zip(cell.memory, before, strict=True):
            tensor.copy_(values)
        given: Any = call(0)
        return given if isinstance(given, tuple) else cell.memory if given is None else (given,)

    with use_backend("reference"):
        expected = [each.clone() for each in left_by(cell.ours)]
    assert expected
    for name, call in {"ours": cell.ours, **(cell.peers if cell.compared else {})}.items():
        limit = cell.limit / 2 if name == "ours" else cell.limit
        for one, other in zip(left_by(call), expected, strict=True):
            assert one.shape == other.shape, f"{name}: shape {list(one.shape)}, expected {list(other.shape)}"
            differ = one != other  # of gigabytes, few numbers
            compare(one[differ], other[differ], limit=limit, what=name)


def timed_in_turn(benchmark: BenchmarkFixture, cell: Cell, seconds: float) -> dict[str, Spread]:
    """Times of ours (under "") and of each peer; ours is called in every round, a slow peer in some."""
    numbers = itertools.count()

    def once(call: Call) -> float:
        number = next(numbers) % cell.parts
        start = time.perf_counter()
        call(number)
        return time.perf_counter() - start

    def rounds(call: Call) -> int:
        once(call)
        return min(max(int(seconds / min(once(call), once(call))), ROUNDS[0]), ROUNDS[1])

    turns = rounds(cell.ours)
    wanted = {name: min(rounds(call), turns) for name, call in cell.peers.items()}
    found: dict[str, list[float]] = {name: [] for name in cell.peers}
    turn = itertools.count()

    def peers_then_ours() -> tuple[tuple[int], dict[str, Any]]:
        number = next(turn)
        for name, call in cell.peers.items():
            if number * wanted[name] // turns >= len(found[name]):
                found[name].append(once(call))
        return (next(numbers) % cell.parts,), {}

    benchmark.pedantic(cell.ours, setup=peers_then_ours, rounds=turns)
    return {"": Spread.of(benchmark.stats.stats.data)} | {name: Spread.of(times) for name, times in found.items()}


def row(cell: Cell, times: Mapping[str, Spread]) -> dict[str, str | float]:
    """The cell's line of the table; a ratio above 1 says that the peer takes longer."""
    ours, least = times[""], measured().seconds(cell.read, cell.operations, cell.dtype, cell.written)
    made: dict[str, str | float] = {
        "shape": cell.shape,
        "dtype": str(cell.dtype).removeprefix("torch."),
        "median us": 1e6 * ours.median,
        "p20": 1e6 * ours.p20,
        "p80": 1e6 * ours.p80,
        "GB/s": (cell.read + cell.written) / ours.median / 1e9,
        "GFLOP/s": cell.operations / ours.median / 1e9,
        "% of limit": 100 * least / ours.median,
    }
    made |= {f"x {name}": times[name].median / ours.median for name in cell.peers}
    return made | cell.more | {"device": machine.device(), "threads": machine.threads()}


def limits_note() -> str:
    """What the shares in a table are of."""
    x = measured()
    return (
        f"Limits measured in this run: {x.bandwidth / 1e9:.1f} GB/s read, {x.copy / 1e9:.1f} GB/s copied, "
        f"{x.bf16 / 1e9:.0f} GFLOP/s bfloat16, {x.f32 / 1e9:.0f} GFLOP/s float32; torch {torch.__version__}."
    )
