"""The pictures: learning curves of runs over each other, and accuracy against the critical path."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from asyncthink.results.reports import Line, read_lines
from asyncthink.results.tables import SHEETS
from asyncthink.train.curve import plot_curves
from asyncthink.view.report import solved

#: Picture -> the training logs that lie over each other in it (name -> file).
CURVES: dict[str, dict[str, str]] = {
    "curves": {mode: f"{mode}.jsonl" for mode in ("sequential", "parallel", "asyncthink")},
    "ablation-curves": {name: f"{name}.jsonl" for name in ("asyncthink", "no-eta", "no-sft")},
}
FIGURES = ("reward", "accuracy", "solved", "format_errors", "eta", "critical_path_tokens")
FRONTIER = "frontier"
PICTURES = (*CURVES, FRONTIER)
_TABLES_IN_FRONTIER = ("countdown", "ablations")


def draw(name: str, data: Path, picture: Path) -> None:
    """Write the PNG ``name`` from the reports and logs under ``data``. Raises ValueError where one is missing."""
    if name == FRONTIER:
        _frontier(data / "eval", picture)
        return
    runs = {label: data / "train" / file for label, file in CURVES[name].items()}
    for path in runs.values():
        if not path.is_file():
            raise ValueError(f"{path}: expected the metrics.jsonl of a training run, got no file")
    plot_curves(runs, picture, FIGURES)


def _frontier(reports: Path, picture: Path) -> None:
    """Share solved against critical path, a cross of both intervals for every line of the first tables."""
    from matplotlib.figure import Figure

    lines: Sequence[Line] = list(
        {line.label: line for name in _TABLES_IN_FRONTIER for line in SHEETS[name].lines}.values()
    )
    found = read_lines(reports, lines)
    figure = Figure(figsize=(6.5, 5.2), layout="constrained")
    axis = figure.subplots()
    for row in found.rows:
        path, right = row["critical_path_tokens"], list(row["at_least"].values())[-1]
        axis.errorbar(
            path["value"], 100 * right["value"], yerr=_arms(right, 100), xerr=_arms(path, 1), fmt="o", label=row["name"]
        )
    axis.set(xlabel="critical path, tokens", ylabel=f"{solved(found.about['asked'])}, percent")
    figure.legend(loc="outside lower center", ncols=2, fontsize=8)  # a point may be anywhere in the picture
    draft = picture.with_name(f".{picture.name}.part.png")
    figure.savefig(draft, dpi=110)
    draft.replace(picture)


def _arms(estimate: dict[str, Any], scale: float) -> list[list[float]]:
    """What matplotlib's error bars take: one length downwards, one upwards."""
    low, value, high = (scale * estimate[part] for part in ("low", "value", "high"))
    return [[max(0.0, value - low)], [max(0.0, high - value)]]
