"""Tree attention over the grid of trees (grid/cells.py), against whoever computes it on the same shared pages.

`pytest bench/bench_tree_grid.py --benchmark` on a GPU times every cell; `bash bench/gpu.sh` does, within ten minutes.
`--cells` takes quick (default), all, or a regular expression. Without the flag, and where there is no GPU, results are
checked, without a GPU on two cells small enough for a CPU.

A cell is one layer's attention of one decoding step: `heads/kv heads`, then the tree as `nodes of each level|tokens of
each node`, one new token for each leaf. K and V are never replicated for a peer, but SDPA, which reads no pages,
gathers what it needs within its time, and FlexAttention gets its packed copy of all unique tokens for nothing. Results
are compared with a float64 computation. Planning on the host is timed apart.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import pytest
import torch

from clock import Spread, host
from contest import CLOCK, DEVICE, Cell, Failures, check
from grid import cells
from grid.contestant import Contestant
from grid.flashinfer_peers import BatchAttention, BatchDecode, Cascade, CascadeFa2
from grid.ours import Paged, SmallestTile, Tree, TreeCuda
from grid.peers import Flex, Sdpa
from grid.problem import Problem

#: In the order of the columns, ours first.
CONTESTANTS: tuple[type[Contestant], ...] = (
    Tree, SmallestTile, TreeCuda, Paged, Sdpa, Flex, BatchDecode, BatchAttention, Cascade, CascadeFa2,
)  # fmt: skip
SMALL = ["8/2 1,3|64,20", "4/4 2,4|32,~9"]  # where there is no GPU
PLANS = 5  # of a peer, timed


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    chosen = metafunc.config.getoption("--cells")
    names = [cell.name for cell in cells.chosen(chosen)]
    metafunc.parametrize("name", names if DEVICE.type == "cuda" else SMALL)


def enter(problem: Problem, only: Sequence[str] | None, failures: Failures) -> tuple[dict[str, Contestant], list[str]]:
    """Who takes part in a cell, with its step planned, and a line for everybody who does not."""
    found: dict[str, Contestant] = {}
    notes = []
    for who in CONTESTANTS:
        reason = "not asked for" if who.peer and only is not None and who.peer not in only else None
        reason = reason or who.missing(problem.device.type) or who.why_not(problem)
        if reason is not None:
            notes.append(f"{who.name} did not run: {reason}")
            continue
        made = failures.attempt("" if who is Tree else who.name, lambda who=who: planned(who, problem))  # type: ignore[misc]
        found |= {who.name: made} if made else {}
    return found, notes


def planned(who: type[Contestant], problem: Problem) -> Contestant:
    made = who(problem)
    made.plan()
    return made


def grid_cell(problem: Problem, contestants: dict[str, Contestant]) -> Cell:
    """The contest of a problem: all on its pages, all verified against its float64 result."""
    ours, *others = contestants.values()
    return Cell(
        shape=problem.cell.name.replace("|", "\\|"),
        dtype=problem.dtype,
        ours=lambda part: ours.run(),
        variants={each.name: lambda part, each=each: each.run() for each in others if each.ours},
        peers={each.name: lambda part, each=each: each.run() for each in others if not each.ours},
        parts=1,
        read=problem.bytes,
        written=0,
        operations=problem.cell.operations,
        verify=ours.verify,
    )


def apart(problem: Problem, contestants: dict[str, Contestant]) -> dict[str, str | float]:
    """Columns of what is timed apart. The problem is of no use afterwards."""
    ours = contestants[Tree.name]
    ours.check()  # writes down which tile ran
    made: dict[str, str | float] = {"MB": problem.bytes / 1e6, "chunk": problem.chunk, "tile": ours.detail}
    made["a call without a graph us"] = 1e6 * host(CLOCK, ours.run).median
    for each in contestants.values():
        if type(each).plan is not Contestant.plan:
            made[f"plan {each.name} us"] = 1e6 * Spread.of([planning(each) for _ in range(PLANS)]).median
    return made | {f"plan {kind} us": 1e6 * spread.median for kind, spread in problem.planning().items()}


def planning(contestant: Contestant) -> float:
    """Seconds that a step's planning takes, up to the device."""
    CLOCK.synchronize()
    start = time.perf_counter()
    contestant.plan()
    CLOCK.synchronize()
    return time.perf_counter() - start


def test_cell(contest, table, failures, asked, name):
    problem = Problem(cells.parse_cell(name), DEVICE.type, torch.bfloat16)
    contestants, notes = enter(problem, asked, failures)
    for note in notes:
        table.note(note)
    cell = grid_cell(problem, contestants)
    if DEVICE.type != "cuda":
        check(cell, failures)
        return
    row = contest(cell)
    if row is not None:
        row |= apart(problem, {each: made for each, made in contestants.items() if each not in failures})
