"""One cell: everybody checked, then timed in turn."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .contestant import Contestant
from .flashinfer_peers import BatchAttention, BatchDecode, Cascade, CascadeFa2
from .grid import Cell
from .ours import Paged, SmallestTile, Tree, TreeCuda
from .peers import Flex, Sdpa
from .problem import Problem
from .record import Entry, Row
from .spread import Spread
from .timing import Clock, Ready, first_line, synchronize

#: In the order of the tables.
CONTESTANTS: tuple[type[Contestant], ...] = (
    Tree, SmallestTile, TreeCuda, Paged, Sdpa, Flex, BatchDecode, BatchAttention, Cascade, CascadeFa2,
)  # fmt: skip
PLANS = 5  # of a peer, timed


class DeviceLost(RuntimeError):  # noqa: N818 - what happened, not whose fault
    """The device answers nothing any more: this process cannot go on."""


@dataclass(frozen=True)
class Rules:
    """`without`: contestants that take no part, with the reason; `warmed`: for those that compile, the cells they have
    compiled for (None: they may compile now); `now`: told who runs, in case nobody comes back."""

    without: Mapping[str, str]
    warmed: Mapping[str, set[str]] | None = None
    now: Callable[[str, str], None] = lambda cell, name: None

    def refused(self, who: type[Contestant], cell: Cell) -> str | None:
        """Why it takes no part in this cell, before it is asked."""
        if who.name in self.without:
            return self.without[who.name]
        if who.compiles is None or self.warmed is None:
            return None
        cells = self.warmed.get(who.name, set())
        ready = bool(cells) if who.compiles == "once" else cell.name in cells
        return None if ready else "its kernels were not compiled in the time there was"


def measure(cell: Cell, clock: Clock, dtype: torch.dtype, rules: Rules, seconds: float) -> Row:
    """The cell's row; `seconds` go to timing, whatever checking takes. DeviceLost where the device is gone."""
    rules.now(cell.name, "the problem itself")
    problem = Problem(cell, str(clock.device), dtype)
    row = Row(
        name=cell.name,
        dtype=str(dtype).removeprefix("torch."),
        rows=cell.tree.rows,
        unique_tokens=cell.tree.unique_tokens,
        bytes=problem.bytes,
        operations=cell.operations,
        chunk=problem.chunk,
    )
    ready: dict[str, Ready] = {}
    for who in CONTESTANTS:
        reason = who.missing(clock.device.type) or rules.refused(who, cell) or who.why_not(problem)
        entry = Entry(who.name, who.ours, reason=reason)
        row.entries.append(entry)
        if entry.reason is None:
            rules.now(cell.name, who.name)
            try:
                ready[who.name] = enter(who(problem), entry, clock)
            except Exception as error:  # a peer may raise anything; the table says what
                entry.failed, entry.reason = True, f"{type(error).__name__}: {first_line(error)}"
                alive(clock)
    rules.now(cell.name, "timing")
    calls = {name: each.call for name, each in ready.items()}
    flushed = clock.in_turn(calls, seconds / 2, clock.flushed)
    warm = clock.in_turn(calls, seconds / 2, clock.warm)
    for name in calls:
        entry = next(each for each in row.entries if each.name == name)
        entry.flushed, entry.warm = flushed[name], warm[name]
    row.planning = problem.planning()
    ready.clear()
    calls.clear()
    gc.collect()
    if clock.gpu:
        torch.cuda.empty_cache()
    return row


def enter(who: Contestant, entry: Entry, clock: Clock) -> Ready:
    """Plan, run, compare; fill the entry with what is known before timing."""
    start = time.perf_counter()
    who.plan()
    who.run()
    synchronize(clock.device)
    entry.first = time.perf_counter() - start
    entry.error = who.check()
    if type(who).plan is not Contestant.plan:
        entry.plan = Spread.of([planned(who, clock) for _ in range(PLANS)])
    if who.ours:
        entry.host = clock.host(who.run)
    entry.detail = who.detail
    ready = clock.ready(who.run)
    entry.reason = ready.reason
    if isinstance(ready.result, Tensor):  # what the graph computes is what is timed
        ready.result.fill_(torch.nan)
        ready.call()
        who.verify(ready.result)
    return ready


def planned(who: Contestant, clock: Clock) -> float:
    start = time.perf_counter()
    who.plan()
    synchronize(clock.device)
    return time.perf_counter() - start


def alive(clock: Clock) -> None:
    """DeviceLost where a failure took the device along."""
    try:
        synchronize(clock.device)
        torch.zeros(1, device=clock.device).item()
    except Exception as error:
        raise DeviceLost(first_line(error)) from error
