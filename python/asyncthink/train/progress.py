"""The reports of a training run: lines in metrics.jsonl, loggers, and a progress bar or plain lines."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from asyncthink.files import write_whole
from asyncthink.train import state
from asyncthink.train.distributed import ALONE, World
from asyncthink.train.loggers import open_loggers


class Reporter:
    """Appends reports to ``metrics.jsonl``, after dropping those later than ``first_step`` (of an interrupted run).

    Each line has ``step``, ``tokens``, ``seconds`` and the metrics of the report. A metric that is not finite is null:
    JSON has no NaN. ``log_to`` names loggers (:mod:`.loggers`), which get the finite metrics. With several processes
    only rank 0 writes files, logs and prints.

    Raises ValueError if a line of the file, other than an incomplete last one, is not a report; ImportError if a
    logger is requested and not installed.
    """

    def __init__(
        self, path: Path, steps: int, first_step: int, world: World = ALONE, log_to: Sequence[str] = ()
    ) -> None:
        main = world.is_main
        self._steps = steps
        self._console = Console(quiet=not main)
        self._bar = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.fields[shown]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not (main and self._console.is_terminal),
        )
        self._task = self._bar.add_task("train", total=steps, completed=first_step, shown="")
        stored = read_metrics(path) if main and path.exists() else []
        logged = max((line["step"] for line in stored), default=0)
        self._loggers = open_loggers(log_to, path.parent, first_step, logged) if main else []
        self._file = None
        if main:
            kept = [line for line in stored if line["step"] <= first_step]
            write_whole(path, "".join(json.dumps(line) + "\n" for line in kept))
            self._file = path.open("a", encoding="utf-8")

    def __enter__(self) -> Reporter:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        if self._file is not None:
            self._file.close()
        for logger in self._loggers:
            logger.close()

    def step(self, progress: state.Progress, metrics: dict[str, Any], shown: str) -> None:
        """Log the ``metrics`` (numbers, or dictionaries of numbers) of a step; the terminal shows ``shown``."""
        speed = f"{progress.tokens / max(progress.seconds, 1e-9):,.0f} tokens/s"
        self._write(progress, metrics)
        self._bar.update(self._task, completed=progress.step, shown=f"{shown} {speed}")
        if not self._console.is_terminal:
            left = (self._steps - progress.step) * progress.seconds / progress.step
            times = f"{progress.seconds / 60:.1f} min, {left / 60:.0f} min left"
            self.say(f"step {progress.step}/{self._steps} {shown} {speed} {times}")

    def note(self, progress: state.Progress, metrics: dict[str, Any], shown: str) -> None:
        """Log metrics that are not measured at every step, in a line of their own."""
        self._write(progress, metrics)
        self.say(shown)

    def say(self, line: str) -> None:
        """Print a line, above the progress bar if there is one."""
        self._console.print(line, highlight=False, soft_wrap=True, markup=False)

    def _write(self, progress: state.Progress, metrics: dict[str, Any]) -> None:
        if self._file is None:
            return
        metrics = finite(metrics)
        line = {"step": progress.step, "tokens": progress.tokens, "seconds": round(progress.seconds, 2), **metrics}
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()
        numbers = {name: value for name, value in flat(metrics) if value is not None}
        for logger in self._loggers:
            logger.log(progress.step, numbers)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The reports in a ``metrics.jsonl``. An incomplete last line, left by a killed process, is ignored.

    Raises ValueError if another line is not a JSON object with a step.
    """
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    reports = []
    for number, line in enumerate(lines[:-1], 1):  # after the last line feed: nothing, or an incomplete line
        try:
            report = json.loads(line)
        except ValueError:
            report = None
        if not isinstance(report, dict) or not isinstance(report.get("step"), int):
            raise ValueError(f"{path}: expected a JSON object with a step in line {number}, got {line[:80]!r}")
        reports.append(report)
    return reports


def finite(metrics: dict[str, Any]) -> dict[str, Any]:
    """The metrics with None in place of each number that is not finite.

    >>> finite({"loss": float("nan"), "held_out": {"solo/exact": 0.5}})
    {'loss': None, 'held_out': {'solo/exact': 0.5}}
    """
    return {
        name: finite(value) if isinstance(value, dict) else value if math.isfinite(value) else None
        for name, value in metrics.items()
    }


def flat(metrics: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float | None]]:
    """(name, number) of every metric; names of nested ones are joined by slashes.

    >>> dict(flat({"loss": 2.0, "held_out": {"solo/exact": 0.5}}))
    {'loss': 2.0, 'held_out/solo/exact': 0.5}
    """
    for name, value in metrics.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value
