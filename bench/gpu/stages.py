"""Everything in order, each part within its time: wheels, build, tests and sanitizer, bench, page.

While nothing is timed yet, those who compile do so in the background (`warm`). A part that fails or runs out of time is
written on the page, hides none of the others, and makes the exit code 1. So does an interruption (Ctrl-C, SIGTERM):
what runs is ended, and what is known by then is on the page.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from . import links, report
from .goals import goals
from .process import ROOT, Process
from .record import WRONG, Record, Stage, records

STAGES = ("build", "tests", "sanitizer", "bench")
OPS = ("append_kv", "copy_pages", "join_append", "merge_states", "paged_attention", "tree_attention")
#: Shares of all the time, from the start, at which a part is ended; the page needs the rest.
BUILD, TESTS, WARM, BENCH = 0.25, 0.45, 0.5, 0.96
#: They test how the repository is built and shipped and what compilers make of it, not the device.
NOT_HERE = ("test_packaging", "test_readme", "test_native_build", "test_kernel_report")
#: In how many processes the sanitizer goes over our kernels: tool, backend and ops. Triton's must be compiled first.
CHECKS = {
    "memcheck of the ops that write": (
        "memcheck",
        "triton",
        ("append_kv", "copy_pages", "join_append", "merge_states"),
    ),
    "memcheck of paged_attention": ("memcheck", "triton", ("paged_attention",)),
    "memcheck of tree_attention": ("memcheck", "triton", ("tree_attention",)),
    "memcheck of CUDA C++": ("memcheck", "cuda", (*OPS, "sample")),
    "racecheck of CUDA C++": ("racecheck", "cuda", ("merge_states", "paged_attention", "sample", "tree_attention")),
}
CHECKED = ("writes_the_slots", "copies_the_pages", "float64_reference")
#: Who compiles, and in how many processes; those that need one module wait for each other.
COMPILING = {
    "FlashInfer BatchDecode (tensor cores)": 1,
    "FlashInfer BatchAttention": 1,
    "FlashInfer cascade (auto)": 1,
    "FlashInfer cascade (fa2)": 1,
    "FlexAttention (packed unique K/V)": 4,
}
HUNG = 90.0  # seconds in which nothing new was run
STARTING = 25.0  # seconds that a bench needs before its budget begins, and to end
RESTARTS = 6


class Run:
    """One run of all stages; `done` are those that ended."""

    def __init__(self, options: argparse.Namespace, scratch: Path) -> None:
        self.options, self.scratch = options, scratch
        self.start, self.today = time.monotonic(), datetime.date.today().isoformat()
        self.began = time.time()
        self.done: list[Stage] = []
        self.processes: list[Process] = []
        paths = [str(ROOT), str(ROOT / "python"), *filter(None, [os.environ.get("PYTHONPATH")])]
        self.device = ["--device", options.device]
        self.environment = {"PYTHONUNBUFFERED": "1", "PYTHONPATH": os.pathsep.join(paths)}

    def at(self, share: float) -> float:
        """The moment when this share of all the time has passed."""
        return self.start + share * float(self.options.limit)

    def python(self, name: str, *arguments: str, **environment: str) -> Process:
        return self.process(name, sys.executable, *arguments, **environment)

    def process(self, name: str, *command: str, **environment: str) -> Process:
        self.processes.append(Process(command, self.scratch / f"{name}.log", {**self.environment, **environment}))
        return self.processes[-1]

    def end(self) -> None:
        """End whatever still runs: nobody else would."""
        for process in self.processes:
            process.end()

    def finish(self, name: str, process: Process, deadline: float) -> bool:
        """Wait for a stage's process and write down what it came to."""
        code = process.wait(deadline)
        note = f"ran out of time: {process.last_line}" if code is None else process.last_line
        return self.note(Stage(name, code == 0, process.seconds, note, process.log.name))

    def note(self, stage: Stage) -> bool:
        self.done.append(stage)
        print(f"{stage.name}: {'ok' if stage.ok else 'FAILED'} in {stage.seconds:.0f} s: {stage.note}", flush=True)
        return stage.ok

    def wheels(self, folder: Path) -> None:
        """Install what a folder has, beside the environment and not into it."""
        site = self.scratch / "site"
        files = [str(path) for path in sorted(folder.glob("*.whl"))]
        pip = ("-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-compile", "--target", str(site), *files)
        self.finish("wheels", self.python("wheels", *pip), self.at(BUILD))
        self.environment["PYTHONPATH"] += os.pathsep + str(site)

    def warm(self) -> list[Process]:
        """Let those who compile begin. They need our planner, which is Python alone, and not the build."""
        found = []
        compilers = links.link(self.scratch / "links", links.places())
        for who, parts in COMPILING.items() if self.options.device == "cuda" else ():
            for part in range(parts):
                arguments = ["--who", who, "--part", f"{part}/{parts}", "--cells", self.options.cells]
                arguments += ["--to", str(self.scratch / "warm"), *self.device]
                found.append(self.python("warm", "-m", "bench.gpu.warm", *arguments, MAX_JOBS="6", **compilers))
        return found

    def build(self) -> None:
        pip = ("-m", "pip", "install", "-e", ".", "--no-build-isolation", "--no-deps")
        self.finish("build", self.python("build", *pip), self.at(BUILD))

    def tests(self) -> Process:
        spread = ["-n", "6"] if importlib.util.find_spec("xdist") else []
        left_out = [f"--ignore=tests/{name}.py" for name in NOT_HERE]
        return self.python("tests", "-m", "pytest", "tests", "-q", "-p", "no:cacheprovider", *spread, *left_out)

    def sanitizer(self) -> dict[str, Process]:
        """Every op, each backend. Without the caching allocator each tensor has borders that can be seen."""
        tool = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
        if tool is None:
            self.note(Stage("sanitizer", False, 0.0, "compute-sanitizer is not installed"))
            return {}
        found = {}
        for name, (what, backend, ops) in CHECKS.items():
            check = (tool, "--tool", what, "--error-exitcode", "9", sys.executable, "-m", "pytest", "-q", "-x")
            which = f"{backend}-cuda and bfloat16 and ({' or '.join(CHECKED)}) and not long"
            tests = (*(f"tests/kernels/test_{op}.py" for op in ops), "-p", "no:cacheprovider", "-k", which)
            found[name] = self.process(name.replace(" ", "-"), *check, *tests, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
        return found

    def bench(self) -> None:
        """Time the cells. Whoever ends or hangs the process is named, and left out when it starts again."""
        start, deadline, now = time.monotonic(), self.at(BENCH), self.scratch / "now.json"
        left_out: list[str] = []
        for _ in range(RESTARTS):
            arguments = ["--out", str(self.options.out), "--cells", self.options.cells, "--now", str(now), *left_out]
            arguments += ["--warm", str(self.scratch / "warm")] if self.options.device == "cuda" else []
            arguments += ["--budget", f"{deadline - time.monotonic() - STARTING:.0f}", *self.device]
            arguments += ["--resume"] if self.made() else []
            now.write_text(json.dumps(["", "the start"]), encoding="utf-8")
            process = self.python("bench", "-m", "bench.gpu.run", *arguments)
            why = watch(process, now, deadline)
            if why is None or deadline - time.monotonic() < 40:
                break
            cell, who = json.loads(now.read_text(encoding="utf-8"))
            print(f"bench: {who} in {cell!r}: {why}", flush=True)
            if who in ("the start", "the problem itself", "timing"):
                left_out += ["--skip", f"{cell}={who}: {why}"]
            else:
                left_out += ["--without", f"{who}={why} in {cell}"]
        note = process.last_line if why is None else f"{why}: {process.last_line}"
        self.note(Stage("bench", process.code == 0, time.monotonic() - start, note, process.log.name))

    def made(self) -> list[tuple[Path, Record]]:
        """The records that this run has written: there may be others of the same day."""
        return [each for each in records(self.options.out) if each[0].stat().st_mtime >= self.began - 1]

    def page(self) -> bool:
        """Add the stages to the record, make one if the bench made none, and write the page."""
        made = self.made()
        if made:
            path, record = made[-1]
        else:
            device = {"type": self.options.device, "name": gpu() or self.options.device}
            record = Record(device, {"python": platform.python_version()}, self.today)
            path = self.options.out / f"{Path(record.file_name).stem}-failed.json"
        record.stages = self.done
        record.save(path)
        text = report.page(records(self.options.out), self.options.page)
        self.options.page.write_text(text, encoding="utf-8")
        print(report.goal_table(goals(record)))
        print(f"{path}\n{self.options.page}")
        return bool(made)

    def keep_logs(self) -> None:
        """All logs in one file, the end of each."""
        with open(self.options.logs, "w", encoding="utf-8") as file:
            for log in sorted(self.scratch.glob("*.log")):
                text = log.read_text(encoding="utf-8", errors="replace")
                file.write(f"===== {log.name}\n{text[-400_000:]}\n")


def watch(process: Process, now: Path, deadline: float) -> str | None:
    """None once it has ended by itself with an answer; else why it was ended or how it died."""
    while process.code is None:
        if time.monotonic() > deadline:
            process.end()
            return "ran out of time"
        if time.time() - now.stat().st_mtime > HUNG:
            process.end()
            return f"did not come back in {HUNG:.0f} s"
        time.sleep(0.2)
    return None if process.code in (0, WRONG) else f"ended the process with code {process.code}"


def gpu() -> str | None:
    """The GPU's name without torch; None where there is none."""
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True
        )
    except OSError:
        return None
    return done.stdout.partition("\n")[0].strip() or None if done.returncode == 0 else None


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    if options.device == "cuda" and gpu() is None:
        print("no GPU here: nothing was built, tested or measured (--device cpu tries the bench out on a CPU)")
        return 2
    options.page = options.out / "RESULTS_GPU.md" if options.out else report.BENCH / "RESULTS_GPU.md"
    options.logs = (options.out or ROOT / "build") / "gpu-logs.txt"
    options.out = options.out or report.BENCH / "results"
    for folder in (options.out, options.logs.parent):
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        run = Run(options, Path(scratch))
        try:
            everything(run)
        except (Exception, KeyboardInterrupt) as error:
            seconds = time.monotonic() - run.start
            run.note(Stage("all stages", False, seconds, f"ended by {type(error).__name__}: {error}".strip(": ")))
        finally:
            run.end()
            run.keep_logs()
        return int(not (run.page() and all(stage.ok for stage in run.done)))


def everything(run: Run) -> None:
    """The stages that were asked for, in order."""
    wanted = run.options.stages
    if run.options.wheels:
        run.wheels(run.options.wheels)
    warming = run.warm() if "bench" in wanted else []
    try:
        if "build" in wanted:
            run.build()
        tests = run.tests() if "tests" in wanted else None
        checks = run.sanitizer() if "sanitizer" in wanted else {}
        if tests:
            run.finish("tests", tests, run.at(TESTS))
        for name, process in checks.items():
            run.finish(name, process, run.at(TESTS))
        for process in warming:
            process.wait(run.at(WARM))
    finally:
        for process in warming:
            process.end()
    if "bench" in wanted:
        run.bench()


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="bash bench/gpu.sh", description="Build, test and bench on a GPU; write RESULTS_GPU.md."
    )
    made.add_argument("--out", type=Path, help="folder for all that is written (bench/results, bench/RESULTS_GPU.md)")
    made.add_argument("--limit", type=float, default=570.0, help="seconds for everything (%(default)s)")
    made.add_argument("--wheels", type=Path, help="folder of wheels to install first, FlashInfer's for one")
    made.add_argument("--cells", default="quick", help="quick, all, or a regular expression (%(default)s)")
    made.add_argument("--stages", nargs="+", default=STAGES, choices=STAGES, help="leave others out")
    made.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="where to bench (%(default)s)")
    return made


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
