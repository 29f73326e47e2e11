"""The two clocks and the contest, on a CPU and with a stand-in for a GPU."""

from __future__ import annotations

import math
import os
import re
import shlex
import subprocess
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from asyncthink_kernels import dispatch

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "bench"))

import clock  # noqa: E402
import contest  # noqa: E402
import limits  # noqa: E402
from clock import CpuClock, GpuClock, Spread, in_turn  # noqa: E402
from grid import cells  # noqa: E402

LIMITS = limits.Limits(1e9, 1e9, 1e12, 1e12)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "ROUNDS", (3, 5))


def test_a_spread_is_median_p20_p80() -> None:
    assert Spread.of([float(n) for n in range(100, 0, -1)]) == Spread(50.5, 21.0, 80.0, 100)
    with pytest.raises(ValueError, match="at least one"):
        Spread.of([])


def test_calls_are_timed_in_turn_on_changing_memory() -> None:
    order = list[tuple[str, int]]()
    calls = {name: lambda part, name=name: order.append((name, part)) for name in "ab"}
    found = in_turn(calls, 0.0, CpuClock().once, parts=3)
    assert [each.repeats for each in found.values()] == [3, 3]
    assert order == [("ab"[n % 2], n % 3) for n in range(8)]
    assert in_turn({}, 1.0, CpuClock().once) == {}


def test_a_slow_call_sits_out_some_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    def take(seconds: float) -> None:
        now[0] += seconds

    calls = {"fast": lambda part: take(0.1), "slow": lambda part: take(1.0)}
    found = in_turn(calls, 1.0, CpuClock().once)
    assert {name: each.repeats for name, each in found.items()} == {"fast": 5, "slow": 3}
    assert (found["fast"].median, found["slow"].median) == pytest.approx((0.1, 1.0))


def stand_in(monkeypatch: pytest.MonkeyPatch, done: list[str], capture: BaseException | None = None) -> None:
    """CUDA graphs and events that only write down what they are asked for."""

    @contextmanager
    def graph(made: object) -> Iterator[None]:
        yield
        if capture:
            raise capture

    class Event:
        def __init__(self, **_: bool) -> None: ...

        def record(self) -> None:
            done.append("record")

        def elapsed_time(self, end: Event) -> float:
            return 2.0  # milliseconds

    replayed = SimpleNamespace(replay=lambda: done.append("replay"))
    fakes = {"CUDAGraph": lambda: replayed, "graph": graph, "Event": Event, "synchronize": lambda *_: None}
    fakes |= {"current_stream": lambda: "the stream", "set_stream": done.append}
    for name, fake in {**fakes, "_sleep": lambda cycles: done.append("sleep")}.items():
        monkeypatch.setattr(torch.cuda, name, fake)


def gpu_clock() -> GpuClock:
    return GpuClock(torch.device("cpu"), l2=1 << 10)


def test_what_a_graph_reads_lives_as_long_as_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Peer:
        def run(self, part: int) -> None: ...

    stand_in(monkeypatch, [])
    peer = Peer()
    alive = weakref.ref(peer)
    ready = gpu_clock().ready(peer.run)
    del peer
    assert ready.reason is None and alive() is not None
    del ready
    assert alive() is None


@pytest.mark.parametrize("error", [None, RuntimeError("operation not permitted\nwhen capturing")])
def test_on_a_gpu_a_replay_lies_between_two_events(
    monkeypatch: pytest.MonkeyPatch, error: BaseException | None
) -> None:
    made, done = gpu_clock(), list[str]()
    stand_in(monkeypatch, done, error)
    ready = made.ready(lambda part: done.append("call"))
    assert ready.reason == (None if error is None else "RuntimeError: operation not permitted")
    assert done[4:] == ([] if error is None else ["the stream"]), "warmed up, captured, and what follows a failure"
    what, _ = "replay" if error is None else "call", done.clear()
    monkeypatch.setattr(made, "flush", lambda: done.append("flush"))
    assert made.flushed(ready.call) == made.warm(ready.call) == 0.002
    assert done == ["flush", "sleep", "record", what, "record", what, "sleep", "record", what, "record"]


def doubled(x: torch.Tensor, peer: clock.Call) -> contest.Cell:
    return contest.Cell("a cell", torch.float32, lambda part: 2 * x, {"peer": peer}, 1, 4096, 4096, limit=1e-6)


def test_a_cell_on_the_clock_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flushed times count, warm ones have columns of their own, and who has no graph is named."""
    stand_in(monkeypatch, [])
    x, failures = torch.ones(4), contest.Failures(tolerant=True)
    cell = doubled(x, lambda part: x + x)
    contest.check(cell, failures)
    times, notes = contest.timed(cell, gpu_clock(), 0.0, failures)
    row = contest.row(cell, times, LIMITS)
    assert (row["median us"], row["warm us"]) == pytest.approx((2000.0, 2000.0))
    assert (row["x peer"], row["warm x peer"], row["% of limit"]) == pytest.approx((1.0, 1.0, 100 * 8192e-9 / 2e-3))
    assert not failures and not notes
    stand_in(monkeypatch, [], RuntimeError("no capture"))
    assert contest.timed(cell, gpu_clock(), 0.0, failures)[1] == [
        "ours without a graph: RuntimeError: no capture",
        "peer without a graph: RuntimeError: no capture",
    ]


def test_no_share_of_the_limit_is_above_the_whole() -> None:
    """A call that beats the probes raises the limit of the whole run, of its dtype's operations or of all bytes."""
    x, none = torch.ones(4), contest.Failures(tolerant=False)
    cells = [
        contest.Cell("bytes", torch.float32, lambda part: 2 * x, {}, 1, 4 << 30, 1 << 30),
        contest.Cell("work", torch.float32, lambda part: 2 * x, {"peer": lambda part: x + x}, 1, 8, 0, 1 << 50),
        contest.Cell("little", torch.float32, lambda part: 2 * x, {}, 1, 8, 0, 8),
    ]
    shares, found = list[contest.Share](), LIMITS
    for cell in cells:
        times = contest.timed(cell, CpuClock(), 0.0, none)[0]
        shares.append(contest.share(cell, contest.row(cell, times, LIMITS), times))
        assert shares[-1].cell.peers == {}, "nothing of the cell is held"
        found = shares[-1].raise_limits(found)
    for share in shares:
        share.settle(found)
    assert found.f32 > LIMITS.f32 and found.bandwidth == found.copy > LIMITS.copy and found.bf16 == LIMITS.bf16
    assert shares[0].row["% of limit"] == pytest.approx(100)
    assert 0 < shares[1].row["% of limit"] <= 100.001 and 0 < shares[2].row["% of limit"] < 1
    gpu = limits.Limits(1e9, 1e9, math.inf, math.inf)
    assert gpu.raised_by(1e-9, 1 << 30, 1, torch.float32) == gpu


def test_a_cell_on_the_clock_of_a_cpu_has_no_other_columns() -> None:
    x, failures = torch.ones(4), contest.Failures(tolerant=False)
    cell = doubled(x, lambda part: x + x)
    row = contest.row(cell, contest.timed(cell, CpuClock(), 0.0, failures)[0], LIMITS)
    assert list(row) == [
        "shape", "dtype", "median us", "p20", "p80", "GB/s", "GFLOP/s", "% of limit", "x peer", "device", "threads",
    ]  # fmt: skip


def test_who_is_wrong_is_named_on_a_gpu_and_fails_on_a_cpu() -> None:
    x = torch.ones(4)
    wrong = doubled(x, lambda part: x)
    failures = contest.Failures(tolerant=True)
    contest.check(wrong, failures)
    assert failures["peer"].startswith("AssertionError: peer: 1.0 for 2.0")
    assert list(contest.timed(wrong, CpuClock(), 0.0, failures)[0][""]) == [""], "who failed is not timed"
    with pytest.raises(AssertionError, match="peer: "):
        contest.check(wrong, contest.Failures(tolerant=False))


def test_a_failure_that_takes_the_device_along_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost() -> None:
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(contest, "CLOCK", SimpleNamespace(synchronize=lost))
    with pytest.raises(RuntimeError, match="illegal memory access"):
        contest.check(doubled(torch.ones(4), lambda part: 1 / 0), contest.Failures(tolerant=True))


def test_the_limit_of_a_gpu_is_its_largest_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, [])
    monkeypatch.setattr(limits, "GPU_BYTES", 1 << 10)
    found = limits.measured(gpu_clock())
    assert found.seconds(1 << 20, 10**9, torch.float32) == pytest.approx((1 << 20) / found.copy)
    assert found.copy == pytest.approx(2 * (1 << 10) / 0.002)


# The script


def test_without_a_gpu_nothing_is_touched(tmp_path: Path) -> None:
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "gpu.sh").write_text((ROOT / "bench" / "gpu.sh").read_text())
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = ["bash", str(tmp_path / "bench" / "gpu.sh")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "no GPU here: nothing was built, tested or measured\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bench", "nvidia-smi"]


@pytest.mark.parametrize("quick", [True, False])
def test_a_dry_run_says_what_the_script_would_do_and_touches_nothing(tmp_path: Path, quick: bool) -> None:
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "gpu.sh").write_text((ROOT / "bench" / "gpu.sh").read_text())
    command = ["bash", str(tmp_path / "bench" / "gpu.sh"), "--dry-run", *(["--quick"] if quick else []), "a folder"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == ["bench", "bench/gpu.sh"]
    stages = re.findall(r"^(\w+) +(\d+) s  (.*)$", done.stdout, re.MULTILINE)
    names = [name for name, _, _ in stages]
    others = [] if quick else ["memcheck", "racecheck"]
    expected = ["wheels", "build", "compile", "tests", *others, "bench", "episode", "page"]
    assert sorted(names) == sorted(expected) and names[:2] == expected[:2] and names[-3:] == expected[-3:]
    ends = {name: int(seconds) for name, seconds, _ in stages}
    assert ends["build"] + ends["tests"] < ends["bench"] < ends["episode"], "what came before leaves time to bench"
    assert ends["episode"] + ends["page"] <= (480 if quick else 600)
    assert "a\\ folder" in stages[0][2]
    named = {path for _, _, text in stages for path in shlex.split(text) if path.startswith(("tests/", "bench/bench_"))}
    assert len(named) > 4 and all((ROOT / path).exists() for path in named)
    assert ("Left out:" in done.stdout) == quick == ("--tool racecheck" in done.stdout.partition("Left out:")[2])


def test_the_cells_that_decide_are_cells() -> None:
    text = (ROOT / "bench" / "gpu.sh").read_text()
    (deciding,) = re.findall(r"^deciding='(.*)'$", text, re.MULTILINE)
    found = [(cell.name, cell.bytes(2) / 1e6) for cell in cells.chosen(deciding)]
    assert len(found) == 9 and {name.partition(" ")[0] for name, _ in found} == {"32/8"}
    assert {size >= 50 for _, size in found} == {True, False} and any(15 <= size < 50 for _, size in found)


def test_a_wish_that_the_script_does_not_know_is_named() -> None:
    command = ["bash", str(ROOT / "bench" / "gpu.sh"), "--fast"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "--fast: expected --quick, --dry-run or a folder of wheels\n")


def test_the_tests_and_benches_that_the_script_names_exist() -> None:
    text = (ROOT / "bench" / "gpu.sh").read_text()
    lists = re.findall(r"(tests/kernels/test_|bench/bench_)\{(.*)\}\.py", text)
    named = [ROOT / f"{stem}{name}.py" for stem, names in lists for name in names.split(",")]
    assert len(named) > 12 and all(path.is_file() for path in named)
    (checked,) = (names.split(",") for stem, names in lists if stem.startswith("tests"))
    (cuda,) = [backend for backend in dispatch.BACKENDS if backend.name == "cuda"]
    ours = [op for op in dispatch.OPS if op not in cuda.without]  # others have no kernel on a GPU
    assert sorted(checked) == sorted(ours)
    (which,) = re.findall(r"and \(([a-z0-9_ ]+)\) and not long", text)
    for op in ours:
        tests = (ROOT / f"tests/kernels/test_{op}.py").read_text()
        names = re.findall(r"^def test_(\w+)\(.*(?:\n    .*)*target: Target", tests, re.M)
        assert any(part in name for name in names for part in which.split(" or ")), op
