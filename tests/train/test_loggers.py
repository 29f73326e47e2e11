"""Where metrics go beside the log: every figure once, also after a resume, and a clear error without the package."""

from __future__ import annotations

import json
import sqlite3
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner

from asyncthink.cli.app import app
from asyncthink.train.checkpoint import Progress
from asyncthink.train.distributed import World
from asyncthink.train.loggers import LOGGERS
from asyncthink.train.progress import Reporter

EXTRA = {"tensorboard": "train", "wandb": "wandb", "trackio": "trackio"}
MODULE = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb", "trackio": "trackio"}


def report(out: Path, steps: range, *names: str, first: int = 0, world: World | None = None) -> None:
    with Reporter(out / "metrics.jsonl", 10, first, world or World(), names) as reporter:
        for step in steps:
            figures = {"loss": 1 / step, "broken": float("nan"), "held_out": {"solo/exact": step / 10}}
            reporter.step(Progress(step, 100 * step, 2.0 * step), figures, "shown")


def interrupted(out: Path, name: str) -> None:
    """Killed after step 4, resumed from the checkpoint of step 2."""
    (out / "config.json").write_text(json.dumps({"questions": 8}))
    report(out, range(1, 5), name)
    report(out, range(3, 7), name, first=2)


def test_tensorboard_has_every_figure_once(tmp_path: Path) -> None:
    interrupted(tmp_path, "tensorboard")
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert events.Tags()["scalars"] == ["loss", "held_out/solo/exact"]
    assert [(event.step, round(event.value, 3)) for event in events.Scalars("loss")] == [
        (step, round(1 / step, 3)) for step in range(1, 7)
    ]


class Service(ModuleType):
    """A double of wandb and trackio."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.opened: list[dict[str, Any]] = []
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.finished = 0

    def init(self, **options: Any) -> SimpleNamespace:
        self.opened.append(options)
        return SimpleNamespace(log=lambda metrics, step: self.logged.append((step, metrics)), finish=self._finish)

    def _finish(self) -> None:
        self.finished += 1


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_service_gets_every_step_once(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service(name)
    monkeypatch.setitem(sys.modules, name, service)
    monkeypatch.delenv(f"{name.upper()}_PROJECT", raising=False)
    interrupted(tmp_path, name)
    assert service.logged == [(step, {"loss": 1 / step, "held_out/solo/exact": step / 10}) for step in range(1, 7)]
    first, second = service.opened
    assert (first["project"], first["name"], first["config"]) == ("asyncthink", tmp_path.name, {"questions": 8})
    assert service.finished == 2
    if name == "wandb":
        assert first["id"] == second["id"], "a resume goes on with the run"
        assert first["resume"] == second["resume"] == "allow"
    else:
        assert (first["resume"], second["resume"]) == ("never", "allow")


def test_a_run_that_starts_again_is_another_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before its first checkpoint: the service cannot take its steps back."""
    service = Service("wandb")
    monkeypatch.setitem(sys.modules, "wandb", service)
    report(tmp_path, range(1, 3), "wandb")
    report(tmp_path, range(1, 4), "wandb")
    assert service.opened[0]["id"] != service.opened[1]["id"]
    assert [step for step, _ in service.logged] == [1, 2, 1, 2, 3]


@pytest.mark.parametrize("name", LOGGERS)
def test_without_the_package_the_extra_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, MODULE[name], None)
    with pytest.raises(ImportError, match=rf'not installed: pip install "asyncthink-kernels\[{EXTRA[name]}\]"'):
        report(tmp_path, range(1), name)
    assert not list(tmp_path.iterdir())


def test_only_the_main_process_logs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report(tmp_path, range(1, 3), "tensorboard", world=World(1, 2))
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("words", [["--log-to", "paper"], ["--log-to", "wandb", "--log-to", "wandb"]])
@pytest.mark.parametrize("command", [["sft"], ["grpo", "--model", "nowhere"]])
def test_names_are_checked_before_anything_runs(command: list[str], words: list[str], tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["train", *command, "--out", str(tmp_path / "run"), *words])
    assert result.exit_code == 1
    assert result.stderr.startswith("asyncthink: log_to: expected different ones of tensorboard, wandb, trackio, got ")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    interrupted(tmp_path, "wandb")
    assert len(list((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))) == 2


@pytest.mark.slow
def test_trackio_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio", reason="the extra trackio is not installed")
    out = tmp_path / "run"
    out.mkdir()
    interrupted(out, "trackio")
    (database,) = (tmp_path / "trackio").rglob("asyncthink*.db")
    with sqlite3.connect(database) as connection:
        rows = connection.execute("select step, metrics from metrics order by step").fetchall()
    assert [(step, json.loads(metrics)["loss"]) for step, metrics in rows] == [(step, 1 / step) for step in range(1, 7)]
