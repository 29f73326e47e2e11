"""One cell of a bench: ours and its peers do the same work; all are checked, then timed in turn (clock.py).

On a GPU a peer that fails is left out and named below the table; on a CPU it fails the cell, as we do everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

import machine
from asyncthink_kernels import use_backend
from asyncthink_kernels.cache import KVStorage, LayerShape
from asyncthink_kernels.testing import compare
from clock import Call, Clock, Ready, Spread, clock, first_line, in_turn
from limits import Limits, measured

SECONDS, QUICK_SECONDS = 0.3, 0.1  # of each contestant in a cell
CLOCK = clock()
DEVICE = CLOCK.device


def parts(bytes_a_call: int, timed: bool) -> int:
    """How many parts of the memory a cell needs; one where nothing is timed."""
    return CLOCK.parts(bytes_a_call) if timed else 1


def caches(L: int, P: int, S: int, H: int, D: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """K and V [L, P, S, H, D] of normal numbers, in memory as the cache's own (huge pages where there are some)."""
    (group,) = KVStorage([LayerShape(H, D, D)] * L, P, S, dtype, DEVICE).groups
    return group.k.normal_(), group.v.normal_()


@dataclass(frozen=True)
class Cell:
    """Work, and who does it.

    ``read`` and ``written`` are the bytes that must move, ``operations`` what must be computed (a multiply-add is two).
    ``memory`` is what calls write to; ``limit`` bounds a peer's and half of it our difference from the reference, with
    0 for bit by bit; ``verify`` says instead, by an exception, whether a result is right. Peers that draw random
    numbers of their own are not ``compared``. ``variants`` are other ways of ours. ``more`` are further columns.
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
    verify: Callable[[Any], object] | None = None
    compared: bool = True
    variants: Mapping[str, Call] = field(default_factory=dict)
    more: dict[str, str | float] = field(default_factory=dict)

    @property
    def everybody(self) -> dict[str, Call]:
        """All calls; ours is named ""."""
        return {"": self.ours, **self.variants, **self.peers}


class Failures(dict[str, str]):
    """Who failed, and why. Ours, and anybody on a CPU, raises instead."""

    def __init__(self, tolerant: bool) -> None:
        super().__init__()
        self.tolerant = tolerant

    def attempt(self, name: str, call: Callable[[], Any]) -> Any:
        """What ``call`` returns; None where it fails and that is tolerated."""
        try:
            return call()
        except Exception as error:  # a peer may raise anything; the table says what
            if not name or not self.tolerant:
                raise
            self[name] = f"{type(error).__name__}: {first_line(error)}"
            CLOCK.synchronize()  # raises where the failure took the device along
            return None


def check(cell: Cell, failures: Failures) -> None:
    """AssertionError unless everybody leaves what the reference leaves, beginning from the same memory."""
    before = [each.clone() for each in cell.memory]

    def left_by(call: Call) -> tuple[Tensor, ...]:
        for tensor, values in zip(cell.memory, before, strict=True):
            tensor.copy_(values)
        given: Any = call(0)
        return given if isinstance(given, tuple) else cell.memory if given is None else (given,)

    expected: list[Tensor] = []
    if cell.verify is None:
        with use_backend("reference"):
            expected = [each.clone() for each in left_by(cell.ours)]
        assert expected

    def checked(name: str, call: Call) -> None:
        found = left_by(call)
        if cell.verify is not None:
            cell.verify(found[0])
            return
        limit = cell.limit if name in cell.peers else cell.limit / 2
        for one, other in zip(found, expected, strict=True):
            assert one.shape == other.shape, f"{name}: shape {list(one.shape)}, expected {list(other.shape)}"
            differ = one != other  # of gigabytes, few numbers
            compare(one[differ], other[differ], limit=limit, what=name or "ours")

    for name, call in cell.everybody.items():
        if name not in cell.peers or cell.compared:
            failures.attempt(name, lambda name=name, call=call: checked(name, call))  # type: ignore[misc]


def timed(
    cell: Cell, clock: Clock, seconds: float, failures: Failures
) -> tuple[dict[str, dict[str, Spread]], list[str]]:
    """Times by the clock's ways and by name, and a line for each call that could not be captured."""
    ready: dict[str, Ready] = {}
    for name, call in cell.everybody.items():
        if name not in failures:
            made = failures.attempt(name, lambda name=name, call=call: prepared(cell, clock, call))  # type: ignore[misc]
            ready |= {name: made} if made else {}
    notes = [f"{name or 'ours'} without a graph: {each.reason}" for name, each in ready.items() if each.reason]
    calls = {name: each.call for name, each in ready.items()}
    return {way: in_turn(calls, seconds, how, cell.parts) for way, how in clock.ways.items()}, notes


def prepared(cell: Cell, clock: Clock, call: Call) -> Ready:
    """The call, warm and captured; what the graph computes is what is timed, so that is verified too."""
    ready = clock.ready(call)
    if cell.verify is not None and isinstance(ready.result, Tensor):
        ready.result.fill_(torch.nan)
        ready.call(0)
        cell.verify(ready.result)
    return ready


@dataclass(frozen=True)
class Share:
    """A row whose share of the limit is known when the run has ended: the limit is the best that anybody reached."""

    row: dict[str, str | float]
    cell: Cell
    fastest: float  # seconds, ours or a peer's

    def raise_limits(self, limits: Limits) -> Limits:
        cell = self.cell
        return limits.raised_by(self.fastest, cell.read, cell.operations, cell.dtype, cell.written)

    def settle(self, limits: Limits) -> None:
        least = limits.seconds(self.cell.read, self.cell.operations, self.cell.dtype, self.cell.written)
        self.row["% of limit"] = 100 * 1e6 * least / float(self.row["median us"])


def row(cell: Cell, times: Mapping[str, Mapping[str, Spread]], limits: Limits) -> dict[str, str | float]:
    """The cell's line of the table; a ratio above 1 says that the peer takes longer."""
    counted, others = times[""], {way: found for way, found in times.items() if way}
    ours, least = counted[""], limits.seconds(cell.read, cell.operations, cell.dtype, cell.written)
    made: dict[str, str | float] = {
        "shape": cell.shape,
        "dtype": str(cell.dtype).removeprefix("torch."),
        "median us": 1e6 * ours.median,
        "p20": 1e6 * ours.p20,
        "p80": 1e6 * ours.p80,
    }
    made |= {f"{way} us": 1e6 * found[""].median for way, found in others.items()}
    made["GB/s"] = (cell.read + cell.written) / ours.median / 1e9
    made["GFLOP/s"] = cell.operations / ours.median / 1e9
    made["% of limit"] = 100 * least / ours.median
    made |= {f"{name} us": 1e6 * counted[name].median for name in cell.variants if name in counted}
    made |= {f"x {name}": counted[name].median / ours.median for name in cell.peers if name in counted}
    for way, found in others.items():
        made |= {f"{way} x {name}": found[name].median / found[""].median for name in cell.peers if name in found}
    return made | cell.more | {"device": machine.device(), "threads": machine.threads()}


def share(cell: Cell, made: dict[str, str | float], times: Mapping[str, Mapping[str, Spread]]) -> Share:
    """What is left to say of a row when the run has ended."""
    return Share(made, replace(cell, **_FORGOTTEN), min(spread.median for spread in times[""].values()))


def _nothing(part: int) -> None: ...


_FORGOTTEN: dict[str, Any] = {"ours": _nothing, "peers": {}, "variants": {}, "memory": (), "verify": None}


def limits_note(limits: Limits) -> str:
    """What the shares in a table are of."""
    probes = measured(CLOCK)
    if math.isinf(probes.f32):
        return (
            f"Limit measured in this run: {probes.copy / 1e9:.0f} GB/s copied, L2 flushed; torch {torch.__version__}."
        )
    told = f"Limits of this run, the best that a probe or anybody's call reached: {_rates(limits)}"
    told += f" (the probes alone: {_rates(probes)})" if limits != probes else ""
    return f"{told}; torch {torch.__version__}."


def _rates(x: Limits) -> str:
    return (
        f"{x.bandwidth / 1e9:.1f} GB/s read, {x.copy / 1e9:.1f} GB/s copied, "
        f"{x.bf16 / 1e9:.0f} GFLOP/s bfloat16, {x.f32 / 1e9:.0f} GFLOP/s float32"
    )
