"""The GPU bench where there is no GPU: its clock, its warming, its run."""

from __future__ import annotations

import json
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))

from bench.gpu import copies, grid, measure, run, timing, warm  # noqa: E402
from bench.gpu.ours import Tree  # noqa: E402
from bench.gpu.record import WRONG, Record, records  # noqa: E402
from bench.gpu.spread import Spread  # noqa: E402

CPU = torch.device("cpu")
CELL = "8/1 1,2|512,32"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "CPU_FLUSH", 1 << 16)
    monkeypatch.setattr(timing, "ROUNDS", (3, 5))


# The clock


def test_a_spread_is_median_p20_p80() -> None:
    assert Spread.of([float(n) for n in range(100, 0, -1)]) == Spread(50.5, 21.0, 80.0, 100)
    with pytest.raises(ValueError, match="at least one"):
        Spread.of([])


def test_calls_are_timed_in_turn() -> None:
    clock, order = timing.Clock(CPU), list[str]()
    found = clock.in_turn({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 0.0, clock.warm)
    assert [each.repeats for each in found.values()] == [timing.ROUNDS[0]] * 2
    assert order == ["a"] * 2 + ["b"] * 2 + ["a", "a", "b", "b"] * timing.ROUNDS[0]
    assert clock.in_turn({}, 1.0, clock.flushed) == {}


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


def test_what_a_graph_reads_lives_as_long_as_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Peer:
        def run(self) -> None: ...

    clock = timing.Clock(CPU)
    clock.gpu = True
    stand_in(monkeypatch, [])
    peer = Peer()
    alive = weakref.ref(peer)
    ready = clock.ready(peer.run)
    del peer
    assert ready.reason is None and alive() is not None
    del ready
    assert alive() is None


@pytest.mark.parametrize("error", [None, RuntimeError("operation not permitted\nwhen capturing")])
def test_on_a_gpu_a_replay_lies_between_two_events(
    monkeypatch: pytest.MonkeyPatch, error: BaseException | None
) -> None:
    clock, done = timing.Clock(CPU), list[str]()
    clock.gpu = True
    stand_in(monkeypatch, done, error)
    ready = clock.ready(lambda: done.append("call"))
    assert ready.reason == (None if error is None else "RuntimeError: operation not permitted")
    assert done[4:] == ([] if error is None else ["the stream"]), "warmed up, captured, and what follows a failure"
    what, _ = "replay" if error is None else "call", done.clear()
    monkeypatch.setattr(clock, "flush", lambda: done.append("flush"))
    assert clock.flushed(ready.call) == clock.warm(ready.call) == 0.002
    assert done == ["flush", "sleep", "record", what, "record", what, "sleep", "record", what, "record"]


def test_ops_that_write_are_checked_against_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = timing.Clock(CPU)
    rules = measure.Rules({})
    found = list(copies.measure(clock, torch.bfloat16, copies.SMALL, 0.0, rules))
    assert {op.name for op in found} == {"append_kv", "join_append", "copy_pages", "merge_states"}
    assert all(op.flushed and op.warm and op.bytes > 0 for op in found)
    calls = iter([lambda *_: None, copies.copy_pages])  # first what is to be timed, then the reference
    monkeypatch.setattr(copies, "copy_pages", lambda *arguments: next(calls)(*arguments))
    broken = {op.name: op for op in copies.measure(clock, torch.bfloat16, copies.SMALL, 0.0, rules)}
    assert "copy_pages" in str(broken["copy_pages"].reason) and broken["copy_pages"].flushed is None
    assert broken["append_kv"].flushed is not None


def test_an_op_that_takes_the_device_along_is_written_down_and_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: object) -> None:
        raise RuntimeError("an illegal memory access was encountered")

    def ended(code: int) -> None:
        raise SystemExit(code)

    now = tmp_path / "now.json"
    arguments = ["--device", "cpu", "--out", str(tmp_path), "--seconds", "0", "--cells", "^8/1 1,1.512,32$"]
    arguments += ["--now", str(now), "--without", "FlexAttention (packed unique K/V)=too slow for a test"]
    with monkeypatch.context() as broken:
        broken.setattr(copies, "join_append", lost)
        broken.setattr(measure, "synchronize", lost)
        broken.setattr(run.os, "_exit", ended)
        with pytest.raises(SystemExit) as end:
            run.main(arguments)
    assert end.value.code == run.LOST and json.loads(now.read_text()) == ["the ops that write", "join_append"]
    ((_, record),) = records(tmp_path)
    assert [op.name for op in record.ops] == ["append_kv", "append_kv", "join_append"]
    assert record.ops[-1].reason == "RuntimeError: an illegal memory access was encountered"
    assert record.skipped == {"8/1 1,1|512,32": "the device was lost"}

    assert run.main([*arguments, "--resume", "--without", "copy_pages=ended the process"]) == WRONG
    ((_, record),) = records(tmp_path)
    assert {op.name: op.reason for op in record.ops if op.flushed is None} == {
        "join_append": "RuntimeError: an illegal memory access was encountered",
        "copy_pages": "ended the process",
    }
    assert len(record.ops) == 5 and len(record.cells) == 1 and not record.skipped


def test_who_is_not_there_is_not_said_to_be_uncompiled() -> None:
    clock = timing.Clock(CPU)
    row = measure.measure(grid.parse_cell("2/1 1,2|16,4"), clock, torch.float32, measure.Rules({}, {}), 0.0)
    entry = row.entry("FlashInfer BatchAttention")
    assert entry is not None and entry.reason == "runs on CUDA only"


@pytest.mark.parametrize(
    ("who", "warmed", "reason"),
    [
        ("FlexAttention (packed unique K/V)", None, None),
        ("FlexAttention (packed unique K/V)", {"FlexAttention (packed unique K/V)": {CELL}}, None),
        ("FlexAttention (packed unique K/V)", {"FlexAttention (packed unique K/V)": {"another"}}, "not compiled"),
        ("FlashInfer cascade (auto)", {"FlashInfer cascade (auto)": {"another"}}, None),
        ("FlashInfer cascade (auto)", {}, "not compiled"),
        ("torch SDPA (gathered)", {}, None),
        ("tree_attention", {}, "left out"),
    ],
)
def test_who_must_have_compiled_ahead(who: str, warmed: dict[str, set[str]] | None, reason: str | None) -> None:
    rules = measure.Rules({"tree_attention": "left out"}, warmed)
    contestant = next(each for each in measure.CONTESTANTS if each.name == who)
    found = rules.refused(contestant, grid.parse_cell(CELL))
    assert found is None if reason is None else reason in str(found)


def test_warming_writes_what_is_ready_and_why_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flex = "FlexAttention (packed unique K/V)"
    arguments = ["--device", "cpu", "--dtype", "float32", "--to", str(tmp_path), "--cells", "^8/1 1,(2|4).512,32$"]
    assert warm.main([*arguments, "--who", flex, "--part", "1/2"]) == 0
    assert warm.read(tmp_path) == ({flex: {"8/1 1,4|512,32"}}, {})
    assert warm.main([*arguments, "--who", "FlashInfer cascade (auto)"]) == 0, "nothing to do without CUDA"
    (tmp_path / "x.jsonl").write_text(json.dumps(["broken", "a cell", "no nvcc"]) + "\n")
    assert warm.read(tmp_path)[1] == {"broken": "failed when compiled ahead: no nvcc"}


# Runs and records


def test_a_run_ends_in_a_record_and_can_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    now = tmp_path / "now.json"
    arguments = ["--device", "cpu", "--out", str(tmp_path), "--seconds", "0", "--dtype", "float32", "--now", str(now)]
    arguments += ["--without", "FlexAttention (packed unique K/V)=too slow for a test"]
    assert run.main([*arguments, "--cells", "^8/1 1,[12].512,32$", "--skip", f"{CELL}=hangs"]) == 0
    ((path, record),) = records(tmp_path)
    assert [row.name for row in record.cells] == ["8/1 1,1|512,32"] and record.skipped == {CELL: "hangs"}
    first = record.cells[0]
    entries = {entry.name: entry for entry in first.entries}
    assert {name for name, entry in entries.items() if entry.flushed and entry.warm} == {
        "tree_attention", "paged_attention", "torch SDPA (gathered)",
    }  # fmt: skip
    assert all(entry.reason for entry in entries.values()), "no graph, or why not run"
    assert entries["FlexAttention (packed unique K/V)"].reason == "too slow for a test"
    assert first.planning and record.copy_bandwidth and all(op.flushed for op in record.ops)
    assert json.loads(now.read_text()) == ["8/1 1,1|512,32", "timing"]

    assert run.main([*arguments, "--cells", "^8/1 1,[12].512,32$", "--resume"]) == 0
    again = Record.load(path)
    assert [row.name for row in again.cells] == ["8/1 1,1|512,32", CELL] and again.cells[0] == first
    assert CELL in capsys.readouterr().out


def test_our_own_failure_is_the_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tree, "run", lambda self: torch.zeros_like(self.problem.q))
    arguments = ["--device", "cpu", "--out", str(tmp_path), "--seconds", "0", "--cells", "^8/1 1,1.512,32$"]
    arguments += ["--without", "FlexAttention (packed unique K/V)=too slow for a test"]
    assert run.main(arguments) == WRONG
    ((_, record),) = records(tmp_path)
    tree = record.cells[0].entry("tree_attention")
    assert tree is not None and tree.failed and "wrong result: relative error 1" in str(tree.reason)


def test_no_time_is_said_of_each_cell(tmp_path: Path) -> None:
    arguments = [
        "--device",
        "cpu",
        "--out",
        str(tmp_path),
        "--seconds",
        "0",
        "--cells",
        "^8/1 1,1.512",
        "--budget",
        "0",
    ]
    assert run.main(arguments) == WRONG, "nothing was measured"
    ((_, record),) = records(tmp_path)
    assert set(record.skipped.values()) == {"no time left"} and len(record.skipped) == 5
