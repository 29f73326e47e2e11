"""`pytest bench/ --benchmark` times; without the flag every bench runs once and only its result is checked.

`--quick` keeps the cells that a bench names by `@pytest.mark.quick`, `--peers a,b` the peers of these names,
`--results FOLDER` also writes the tables there. `--isa avx2`, with `ATEN_CPU_CAPABILITY=avx2` set, is what a processor
without AVX-512 does. Timings mean something on an idle machine only: before the first one it is looked at, and what
others used of it stands below each table.
"""

from __future__ import annotations

import dataclasses
import datetime
import gc
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
import torch

import contest as contests
import machine
import peers as all_peers
from asyncthink_kernels.backends import native
from clock import Clock
from limits import measured

TABLES = pytest.StashKey[dict[str, "Table"]]()
PEERS = pytest.StashKey[list[str] | None]()
DEADLINE = pytest.StashKey[float]()
OTHERS = pytest.StashKey[machine.Others]()


class Table:
    """Rows of one bench file and the lines below them, printed when all have run."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.rows: list[dict[str, str | float]] = []
        self.notes: list[str] = []
        self.more: dict[str, object] = {}  # for the JSON file alone
        self.shares: list[contests.Share] = []
        self.summary: Callable[[list[dict[str, str | float]]], str] | None = None  # of all rows, a line below them

    def add(self, row: dict[str, str | float]) -> None:
        self.rows.append(row)

    def note(self, line: str) -> None:
        """Say it once, however many cells do."""
        if line and line not in self.notes:
            self.notes.append(line)

    def lines_below(self) -> list[str]:
        return self.notes if self.summary is None else [self.summary(self.rows), *self.notes]

    def markdown(self) -> str:
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        lines = [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
        lines += [f"| {' | '.join(_text(row.get(name, '')) for name in names)} |" for row in self.rows]
        for note in self.lines_below():
            lines += ["", note]
        return "\n".join([*lines, ""])


def _text(value: str | float) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--benchmark", action="store_true", help="time the benches; without it only results are checked")
    parser.addoption("--results", metavar="FOLDER", help="also write tables of results there, as Markdown and JSON")
    parser.addoption("--quick", action="store_true", help="the fewest cells of each bench: all benches in two minutes")
    parser.addoption("--budget", type=float, default=math.inf, help="seconds after which no new cell of an op begins")
    parser.addoption("--cells", default="quick", help="of bench_tree_grid.py: quick, all, or a regular expression")
    parser.addoption("--isa", metavar="NAME", help="force our instruction set: scalar, avx2, avx512, avx512bf16")
    parser.addoption("--peers", metavar="NAME,NAME", help=f"compare with these only: {', '.join(all_peers.known())}")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "quick(**cells): the values of parameters that --quick keeps")
    config.stash[TABLES] = {}
    config.stash[DEADLINE] = time.monotonic() + config.getoption("--budget")
    if config.getoption("--isa"):
        narrow(config.getoption("--isa"))
    text = config.getoption("--peers")
    try:
        config.stash[PEERS] = None if text is None else all_peers.chosen(text)
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None
    if not config.getoption("--benchmark"):
        config.option.benchmark_disable = True


def narrow(isa: str) -> None:
    """Our kernels as on a processor without wider sets. torch reads what it may use when it is imported."""
    told = os.environ.get("ATEN_CPU_CAPABILITY")
    if isa == "avx2" and told != "avx2":
        raise pytest.UsageError(f"--isa avx2: expected ATEN_CPU_CAPABILITY=avx2 for torch's own kernels, got {told}")
    cpu = native.load("_cpu")
    if cpu is None:
        raise pytest.UsageError("--isa: expected the native module _cpu, which was not built")
    try:
        cpu.set_isa(isa)
    except ValueError as error:
        raise pytest.UsageError(f"--isa: {error}") from None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--quick"):
        return
    left_out = [item for item in items if not _kept(item)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


def _kept(item: pytest.Item) -> bool:
    mark = item.get_closest_marker("quick")
    if mark is None or not isinstance(item, pytest.Function) or not hasattr(item, "callspec"):
        return True
    return all(item.callspec.params[name] in values for name, values in mark.kwargs.items())


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    """Look whether the machine is idle, when everything is imported and nothing runs yet."""
    if session.config.getoption("--benchmark") and not session.config.option.collectonly:
        session.config.stash[OTHERS] = machine.Others()


@pytest.fixture(autouse=True)
def _memory() -> Iterator[None]:
    """Give the GPU back what a bench held; graphs keep memory of their own. Ends the run where the device is lost."""
    yield
    lost(contests.CLOCK)
    if contests.DEVICE.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


@pytest.fixture
def quick(request: pytest.FixtureRequest) -> bool:
    """Whether a bench should take few samples."""
    return bool(request.config.getoption("--quick"))


@pytest.fixture
def timed(request: pytest.FixtureRequest) -> bool:
    """Whether times are taken. Skips the bench where `--budget` is spent."""
    left = request.config.stash[DEADLINE] - time.monotonic()
    if left < 0:
        pytest.skip("no time left")
    return bool(request.config.getoption("--benchmark"))


@pytest.fixture
def table(request: pytest.FixtureRequest) -> Table:
    """The table of this bench file."""
    title = request.path.stem.removeprefix("bench_")
    return request.config.stash[TABLES].setdefault(title, Table(title))


@pytest.fixture
def idle(request: pytest.FixtureRequest) -> str:
    """What others used of the machine before timing, as a line for a table."""
    others = request.config.stash.get(OTHERS, None)
    return "" if others is None else machine.note(others.before)


@pytest.fixture
def peers(request: pytest.FixtureRequest, table: Table) -> dict[str, Callable[..., object]]:
    """The peers of the op that names this bench file, those of `--peers`; who is missing stands below the table."""
    calls, note = all_peers.entrants(table.title, request.config.stash[PEERS])
    table.note(note)
    return dict(calls)


@pytest.fixture
def engines(request: pytest.FixtureRequest, table: Table) -> list[str]:
    """Names of the whole engines that this bench file compares with, as `peers`."""
    names, note = all_peers.engines(table.title, request.config.stash[PEERS])
    table.note(note)
    return names


@pytest.fixture
def failures() -> contests.Failures:
    """Peers of this cell that failed; ours, and anybody on a CPU, fails the test instead."""
    return contests.Failures(tolerant=contests.CLOCK.device.type == "cuda")


@pytest.fixture
def asked(request: pytest.FixtureRequest) -> list[str] | None:
    """The names in `--peers`; None where all peers are asked for."""
    return request.config.stash[PEERS]


@pytest.fixture
def contest(
    timed: bool, table: Table, quick: bool, failures: contests.Failures
) -> Callable[[contests.Cell], dict[str, str | float] | None]:
    """Check a cell; with `--benchmark` time it, add its row to the table and return that."""

    def run(cell: contests.Cell) -> dict[str, str | float] | None:
        try:
            contests.check(cell, failures)
            if not timed:
                return None
            seconds = contests.QUICK_SECONDS if quick else contests.SECONDS
            times, notes = contests.timed(cell, contests.CLOCK, seconds, failures)
            table.add(made := contests.row(cell, times, measured(contests.CLOCK)))
            table.shares.append(contests.share(cell, made, times))
            for note in notes:
                table.note(note)
            return made
        finally:
            for name, reason in failures.items():
                table.note(f"{name} failed in {cell.shape}: {reason}")

    return run


def lost(clock: Clock) -> None:
    """End the run where the device answers nothing any more: tables hold what was found by then."""
    try:
        clock.synchronize()
    except Exception as error:
        pytest.exit(f"the device was lost: {error}", returncode=3)


def settle(tables: Iterable[Table]) -> None:
    """Shares of the limit, when all has run: of the best that a probe or a call reached in any table."""
    shares = [(table, share) for table in tables for share in table.shares]
    if not shares:
        return
    limits = measured(contests.CLOCK)
    for _, share in shares:
        limits = share.raise_limits(limits)
    for table, share in shares:
        share.settle(limits)
        table.more["limits"] = dataclasses.asdict(limits)
        table.note(contests.limits_note(limits))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    folder, others, isa = config.getoption("--results"), config.stash.get(OTHERS, None), config.getoption("--isa")
    idle = "" if others is None else machine.note(others.before, others.since())
    settle(config.stash[TABLES].values())
    for table in (table for table in config.stash[TABLES].values() if table.rows):
        table.note(idle)
        if isa:
            table.note(f"Our kernels ran with {isa} alone, torch's with {os.environ.get('ATEN_CPU_CAPABILITY')}.")
        terminalreporter.write_line(f"\n{table.title}\n\n{table.markdown()}")
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            (Path(folder) / f"{table.title}.md").write_text(table.markdown(), encoding="utf-8")
            made = {"date": datetime.date.today().isoformat(), "machine": machine.device(), "torch": torch.__version__}
            made |= {"isa": isa} if isa else {}
            data = made | {"rows": table.rows, "notes": table.lines_below()} | table.more
            (Path(folder) / f"{table.title}.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    if idle:
        terminalreporter.write_line(idle, red=idle.startswith("WARNING"), bold=idle.startswith("WARNING"))
