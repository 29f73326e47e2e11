"""The GPU bench's stages: what fails, hangs or ends a process is named, and hides nothing else."""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path

import pytest

from asyncthink_kernels import dispatch

sys.path.append(str(Path(__file__).resolve().parents[2]))

from bench.gpu import links, stages
from bench.gpu.measure import CONTESTANTS
from bench.gpu.process import Process
from bench.gpu.record import Record, Stage, records


def new_run(tmp_path: Path, *arguments: str) -> stages.Run:
    options = stages.parser().parse_args(["--out", str(tmp_path / "out"), "--device", "cpu", *arguments])
    options.page, options.logs = options.out / "RESULTS_GPU.md", options.out / "logs.txt"
    options.out.mkdir()
    (tmp_path / "scratch").mkdir()
    return stages.Run(options, tmp_path / "scratch")


def test_a_stage_that_fails_or_runs_out_of_time_is_on_the_page(tmp_path: Path) -> None:
    made = new_run(tmp_path)
    assert not made.finish("build", made.python("build", "-c", "print('broken'); exit(4)"), made.at(1.0))
    forever = made.python("tests", "-c", "import time; print('first', 'test', flush=True); time.sleep(60)")
    while "first test" not in forever.log.read_text():
        assert forever.code is None
    assert not made.finish("tests", forever, time.monotonic())
    assert forever.code is not None and forever.seconds < 30
    assert not made.page(), "no bench, no record but that of the failure"
    made.keep_logs()
    ((path, record),) = records(made.options.out)
    assert path.name.endswith("-failed.json")
    assert [(s.name, s.ok, s.note) for s in record.stages] == [
        ("build", False, "broken"),
        ("tests", False, "ran out of time: first test"),
    ]
    assert "===== build.log" in made.options.logs.read_text()


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_what_ends_the_script_is_on_the_page_and_leaves_nothing_running(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[Process] = []

    def broken(run: stages.Run) -> None:
        run.note(Stage("build", True, 1.0, "built"))
        begun.append(run.python("tests", "-c", "import time; time.sleep(60)"))
        raise error

    monkeypatch.setattr(stages, "everything", broken)
    assert stages.main(["--out", str(tmp_path / "out"), "--device", "cpu"]) == 1
    assert begun[0].code is not None
    ((_, record),) = records(tmp_path / "out")
    assert [(stage.name, stage.ok) for stage in record.stages] == [("build", True), ("all stages", False)]
    assert record.stages[1].note.startswith(f"ended by {type(error).__name__}")
    assert (tmp_path / "out" / "RESULTS_GPU.md").exists() and (tmp_path / "out" / "gpu-logs.txt").exists()


def test_without_a_gpu_nothing_is_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "gpu", lambda: None)
    assert stages.main(["--out", str(tmp_path / "out")]) == 2
    assert not list(tmp_path.iterdir())


BENCH = """
import json, os, sys
now = sys.argv[sys.argv.index("--now") + 1]
if "--without" not in sys.argv:
    open(now, "w").write(json.dumps(["a cell", "a peer"]))
    os._exit(3)
assert sys.argv[sys.argv.index("--without") + 1] == "a peer=ended the process with code 3 in a cell"
print("resumed" if "--resume" in sys.argv else "began anew")
"""


@pytest.mark.parametrize(("age", "how"), [(0, "resumed"), (3600, "began anew")])
def test_who_ends_the_bench_is_left_out_of_the_next_try_which_goes_on_with_this_runs_record(
    age: int, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = new_run(tmp_path)
    record = Record({"type": "cpu", "name": "a cpu"}, {}, made.today)
    record.save(path := made.options.out / record.file_name)
    os.utime(path, (made.began - age, made.began - age))
    monkeypatch.setattr(
        made, "python", lambda name, _m, _run, *rest: made.process(name, sys.executable, "-c", BENCH, *rest)
    )
    made.bench()
    assert [(s.name, s.ok, s.note) for s in made.done] == [("bench", True, how)]


def test_who_hangs_the_bench_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = tmp_path / "now.json"
    now.write_text("[]")
    monkeypatch.setattr(stages, "HUNG", 0.0)
    process = Process([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path / "log", {})
    assert stages.watch(process, now, time.monotonic() + 60) == "did not come back in 0 s"
    assert process.code is not None


def test_everybody_who_compiles_does_it_ahead() -> None:
    assert set(stages.COMPILING) == {who.name for who in CONTESTANTS if who.compiles}


def test_the_tests_that_stages_name_exist() -> None:
    tests = Path(__file__).parent
    assert all((tests / f"{name}.py").is_file() for name in stages.NOT_HERE)
    for backend in ("triton", "cuda"):
        checked = [
            op for tool, who, ops in stages.CHECKS.values() for op in ops if (tool, who) == ("memcheck", backend)
        ]
        assert sorted(checked) == sorted(stages.OPS if backend == "triton" else dispatch.OPS)
    assert set(stages.OPS) <= set(dispatch.OPS)
    for op in dispatch.OPS:
        names = re.findall(
            r"^def test_(\w+)\(.*(?:\n    .*)*target: Target", (tests / f"test_{op}.py").read_text(), re.M
        )
        assert any(part in name for name in names for part in stages.CHECKED), op


def test_compilers_get_the_names_that_they_look_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = ("a/libcudart.so.13", "b/libcudart.so", "b/libcuda.so.1", "b/libcudnn.so", "b/curand_kernel.h", "b/cuda.h")
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    monkeypatch.setenv("CPATH", "/before")
    monkeypatch.delenv("LIBRARY_PATH", raising=False)
    folder = tmp_path / "links"
    found = links.link(folder, [tmp_path / "a", tmp_path / "none", tmp_path / "b"])
    assert found == {"LIBRARY_PATH": str(folder), "CPATH": f"/before:{folder}"}
    assert {path.name: path.read_text() for path in folder.iterdir()} == {
        "libcudart.so": "a/libcudart.so.13",
        "libcuda.so": "b/libcuda.so.1",
        "curand_kernel.h": "b/curand_kernel.h",
    }
