"""What a training run says while it goes: a JSON line per report, and a progress bar or plain lines."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from asyncthink.train import checkpoint


class Reporter:
    """Appends to ``metrics.jsonl``; lines of steps after ``first_step`` (of an interrupted run) are dropped first."""

    def __init__(self, path: Path, steps: int, first_step: int) -> None:
        kept = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        kept = [line for line in kept if json.loads(line)["step"] <= first_step]
        path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        self._file = path.open("a", encoding="utf-8")
        self._console = Console()
        self._bar = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.fields[loss]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("train", total=steps, completed=first_step, loss="")
        self._steps = steps

    def __enter__(self) -> Reporter:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        self._file.close()

    def step(self, progress: checkpoint.Progress, loss: float, norm: float, rate: float) -> None:
        speed = progress.tokens / progress.seconds
        self._write(progress, loss=round(loss, 5), gradient_norm=round(norm, 4), learning_rate=rate)
        self._bar.update(self._task, completed=progress.step, loss=f"loss {loss:.4f} {speed:,.0f} tokens/s")
        if not self._console.is_terminal:
            left = (self._steps - progress.step) * progress.seconds / progress.step
            self._say(
                f"step {progress.step}/{self._steps} loss {loss:.4f} norm {norm:.2f} {speed:,.0f} tokens/s "
                f"{progress.seconds / 60:.1f} min, {left / 60:.0f} min left"
            )

    def evaluation(self, progress: checkpoint.Progress, figures: dict[str, float]) -> None:
        self._write(progress, held_out=figures)
        names = sorted({name.partition("/")[0] for name in figures})
        parts = [f"{name} {figures[f'{name}/exact']:.1%}/{figures[f'{name}/final']:.1%}" for name in names]
        self._say(f"held out after {progress.step} (exact/final): " + ", ".join(parts))

    def _say(self, line: str) -> None:
        self._console.print(line, highlight=False, soft_wrap=True)

    def _write(self, progress: checkpoint.Progress, **values: Any) -> None:
        line = {"step": progress.step, "tokens": progress.tokens, "seconds": round(progress.seconds, 2), **values}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
