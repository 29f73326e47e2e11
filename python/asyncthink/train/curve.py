"""Learning curves of one or more runs, as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from asyncthink.train.progress import flat, read_metrics

try:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
except ImportError as error:
    raise ImportError('training draws its curves with matplotlib: pip install "asyncthink-kernels[train]"') from error

#: Metric -> (title, axis label, scale). A panel is drawn for each metric that a run reports.
PANELS = {
    "loss": ("training loss", "nats per learned token", "log"),
    "reward": ("reward", "mean of the step's episodes", "linear"),
    "accuracy": ("accuracy", "fraction correct", "linear"),
    "solved": ("solved", "share of episodes, wholly", "linear"),
    "format_errors": ("format errors", "share of episodes", "linear"),
    "eta": ("concurrency ratio", "η", "linear"),
    "critical_path_tokens": ("critical path", "tokens", "linear"),
    "forks": ("forks", "per episode", "linear"),
    "kl": ("distance to the reference", "nats per token", "linear"),
}
#: Metrics of held-out puzzles; they share the last panel.
HELD_OUT = ("solo/exact", "worker_shared/exact", "worker_isolated/exact", "organizer/final")


def plot_curves(runs: Mapping[str, Path], picture: Path, metrics: Sequence[str] = ()) -> None:
    """Draw the ``metrics.jsonl`` files of ``runs`` (name -> file) over steps, one panel for each metric.

    ``metrics`` selects the panels; by default all of :data:`PANELS` and the held-out puzzles. All runs share each
    panel. The thin line is the single reports, the thick one their moving average over a fiftieth of the run, or over 8
    reports of a short one, at most a quarter of them. Raises ValueError if no run reports a metric that has a panel.
    """
    lines = {name: [dict(flat(line)) for line in read_metrics(path)] for name, path in runs.items()}
    reported = {
        metric for reports in lines.values() for report in reports for metric in report if report[metric] is not None
    }
    panels = [metric for metric in metrics or PANELS if metric in reported]
    held_out = [name for name in HELD_OUT if f"held_out/{name}" in reported and not metrics]
    count = len(panels) + bool(held_out)
    if not count:
        raise ValueError(f"curves: expected one of {', '.join(PANELS)} in {', '.join(map(str, runs.values()))}")
    columns = min(count, 3)
    rows = -(-count // columns)
    figure = Figure(figsize=(5 * columns, 3.8 * rows), layout="tight")
    axes = list(np.ravel(figure.subplots(rows, columns, squeeze=False)))
    for axis, name in zip(axes, panels, strict=False):
        _panel(axis, name, lines)
    if held_out:
        _held_out(axes[len(panels)], held_out, lines)
    for axis in axes[count:]:
        axis.set_axis_off()
    draft = picture.with_name(f"{picture.name}.part")
    try:
        figure.savefig(draft, dpi=110, format=picture.suffix.lstrip(".") or "png")
        draft.replace(picture)
    finally:
        draft.unlink(missing_ok=True)


def _series(reports: list[dict[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    points = [(report["step"], report[name]) for report in reports if report.get(name) is not None]
    return np.array([step for step, _ in points]), np.array([value for _, value in points], dtype=float)


def _panel(axis: Axes, name: str, runs: Mapping[str, list[dict[str, Any]]]) -> None:
    title, label, scale = PANELS[name]
    if any((_series(reports, name)[1] <= 0).any() for reports in runs.values()):
        scale = "linear"  # a policy-gradient loss crosses zero
    for number, (run, reports) in enumerate(runs.items()):
        steps, values = _series(reports, name)
        if not len(steps):
            continue
        width = max(len(values) // 50, min(8, len(values) // 4), 1)
        smooth = np.convolve(values, np.full(width, 1 / width), "valid")
        axis.plot(steps, values, color=f"C{number}", alpha=0.35, linewidth=0.7)
        axis.plot(steps[width - 1 :], smooth, color=f"C{number}", linewidth=1.6, label=run)
    axis.set(title=title, xlabel="step", ylabel=label, yscale=scale)
    if len(runs) > 1:
        axis.legend()


def _held_out(axis: Axes, names: list[str], runs: Mapping[str, list[dict[str, Any]]]) -> None:
    for number, (run, reports) in enumerate(runs.items()):
        for name, style in zip(names, ("-", "--", ":", "-."), strict=False):
            steps, values = _series(reports, f"held_out/{name}")
            label = f"{run} {name}" if len(runs) > 1 else name
            color = f"C{number}" if len(runs) > 1 else None
            axis.plot(steps, values, style, color=color, marker=".", label=label)
    axis.set(title="held-out puzzles, teacher-forced", xlabel="step", ylabel="share right", ylim=(0, 1))
    axis.legend(fontsize="small")
