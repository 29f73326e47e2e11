"""Where the metrics of a run go beside ``metrics.jsonl``: TensorBoard, Weights & Biases, Trackio.

Each is imported only when a run asks for it. Steps that a resumed run repeats are not logged a second time.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from asyncthink.files import write_whole
from asyncthink.train.runs import CONFIG

PROJECT = "asyncthink"  # of runs in wandb and trackio, unless WANDB_PROJECT or TRACKIO_PROJECT is set


class Logger(Protocol):
    """Takes the finite metrics of a report, by names with slashes."""

    def log(self, step: int, metrics: dict[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in ``out/tensorboard``. Raises ImportError if TensorBoard is not installed."""

    def __init__(self, out: Path, first_step: int, logged: int, config: dict[str, Any]) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise _missing("TensorBoard", "train") from error
        # It drops the steps that the interrupted run had logged later.
        self._writer: Any = SummaryWriter(str(out / "tensorboard"), purge_step=first_step + 1)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _Tracker:
    """A run in a service that cannot take steps back: those up to ``logged`` are there already."""

    def __init__(self, run: Any, logged: int) -> None:
        self._run, self._logged = run, logged

    def log(self, step: int, metrics: dict[str, float]) -> None:
        if step > self._logged:
            self._run.log(metrics, step=step)

    def close(self) -> None:
        self._run.finish()


def wandb(out: Path, first_step: int, logged: int, config: dict[str, Any]) -> Logger:
    """Weights & Biases; ``WANDB_MODE=offline`` works. ``out/wandb-run`` keeps the run's id for a resume.

    Raises ImportError if wandb is not installed.
    """
    try:
        import wandb as library
    except ImportError as error:
        raise _missing("wandb", "wandb") from error
    file = out / "wandb-run"
    if not (first_step and file.exists()):
        out.mkdir(parents=True, exist_ok=True)
        write_whole(file, uuid.uuid4().hex)
        logged = 0
    project = os.environ.get("WANDB_PROJECT", PROJECT)
    run = library.init(project=project, name=out.name, dir=str(out), id=file.read_text(), resume="allow", config=config)
    return _Tracker(run, logged)


def trackio(out: Path, first_step: int, logged: int, config: dict[str, Any]) -> Logger:
    """Trackio: a database under ``TRACKIO_DIR`` on this machine. Raises ImportError if trackio is not installed."""
    try:
        import trackio as library
    except ImportError as error:
        raise _missing("trackio", "trackio") from error
    project = os.environ.get("TRACKIO_PROJECT", PROJECT)
    run = library.init(project=project, name=out.name, config=config, resume="allow" if first_step else "never")
    return _Tracker(run, logged)


LOGGERS: dict[str, Callable[[Path, int, int, dict[str, Any]], Logger]] = {
    "tensorboard": TensorBoard,
    "wandb": wandb,
    "trackio": trackio,
}


def check_loggers(names: Sequence[str]) -> None:
    """Raises ValueError for a name that is not one of :data:`LOGGERS`, or is given twice."""
    for name in names:
        if name not in LOGGERS or list(names).count(name) > 1:
            raise ValueError(f"log_to: expected different ones of {', '.join(LOGGERS)}, got {', '.join(names)}")


def open_loggers(names: Sequence[str], out: Path, first_step: int, logged: int) -> list[Logger]:
    """The loggers of a run that continues behind ``first_step``, and had logged steps up to ``logged`` before.

    They are told the options in ``out/config.json``, if there is one. Raises ImportError for one that is not installed.
    """
    file = out / CONFIG
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return [LOGGERS[name](out, first_step, logged, config) for name in names]


def _missing(library: str, extra: str) -> ImportError:
    return ImportError(f'{library} is not installed: pip install "asyncthink-kernels[{extra}]"')
