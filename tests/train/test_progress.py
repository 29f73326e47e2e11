"""What a run reports: JSON lines, a line for a reader, and curves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from asyncthink.train.curve import plot_curves
from asyncthink.train.progress import Reporter
from asyncthink.train.state import Progress


def report(path: Path, steps: range) -> None:
    with Reporter(path, 10, 0) as reporter:
        for step in steps:
            figures = {"loss": 1 / step, "held_out": {"solo/exact": step / 10}}
            reporter.step(Progress(step, 100 * step, 2.0 * step), figures, f"loss {1 / step:.2f}")


def test_lines_for_a_machine_and_for_a_reader(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "metrics.jsonl"
    report(path, range(1, 3))
    with Reporter(path, 10, 2) as reporter:
        reporter.note(Progress(2, 200, 4.0), {"solved": 0.5}, "half of [them]")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0] == {"step": 1, "tokens": 100, "seconds": 2.0, "loss": 1.0, "held_out": {"solo/exact": 0.1}}
    assert [line["step"] for line in lines] == [1, 2, 2]
    assert lines[2] == {"step": 2, "tokens": 200, "seconds": 4.0, "solved": 0.5}
    assert capsys.readouterr().out.splitlines() == [
        "step 1/10 loss 1.00 50 tokens/s 0.0 min, 0 min left",
        "step 2/10 loss 0.50 50 tokens/s 0.1 min, 0 min left",
        "half of [them]",
    ]


def write(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_curves_lie_over_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A panel for each family of figures that some run has, in it a smoothed line for each run that has it."""
    seen: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (seen.append(self), save(self, *a, **k))[1])
    values = np.linspace(0, 1, 200)
    one = write(tmp_path / "a", [{"step": k, "reward": v, "eta": 1 - v} for k, v in enumerate(values)])
    other = write(tmp_path / "b", [{"step": k, "reward": v**2, "kl": None} for k, v in enumerate(values)])
    plot_curves({"with": one, "without": other}, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    reward, eta = seen[0].axes
    assert [axis.get_title() for axis in (reward, eta)] == ["reward", "concurrency ratio"]
    smooth = {line.get_label(): line for line in reward.lines if not str(line.get_label()).startswith("_")}
    assert list(smooth) == ["with", "without"]
    np.testing.assert_allclose(smooth["with"].get_ydata(), np.convolve(values, np.full(8, 0.125), "valid"))
    assert len([line for line in eta.lines if line.get_label() == "with"]) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b", "curves.png"}


def test_nothing_to_draw_is_said(tmp_path: Path) -> None:
    path = write(tmp_path / "a", [{"step": 1, "tokens": 3}])
    with pytest.raises(ValueError, match=r"curves: expected one of loss, .* in .*a"):
        plot_curves({"a": path}, tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()
