"""The pictures: learning curves of runs over each other, and accuracy against the critical path."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from asyncthink.train.curve import plot_curves
from asyncthink.view.report import solved
from page_reports import Line, read_lines
from page_tables import SHEETS

#: Picture -> the training runs that lie over each other in it.
CURVES = {"curves": ("sequential", "parallel", "asyncthink"), "ablation-curves": ("asyncthink", "no-eta", "no-sft")}
FIGURES = ("reward", "accuracy", "solved", "format_errors", "eta", "critical_path_tokens")
FRONTIER = "frontier"
PICTURES = (*CURVES, FRONTIER)
_TABLES_IN_FRONTIER = ("countdown", "ablations")


def draw(name: str, reports: Path, runs: Path, picture: Path) -> None:
    """Write the PNG ``name`` from the folder of reports or that of runs. Raises ValueError where a file is missing."""
    if name == FRONTIER:
        _frontier(reports, picture)
        return
    logs = {run: runs / run / "metrics.jsonl" for run in CURVES[name]}
    for run, path in logs.items():
        if not path.is_file():
            raise ValueError(f"{path}: expected the log of training run {run}, got no file")
    plot_curves(logs, picture, FIGURES)
    _shrink(picture)


def _shrink(picture: Path) -> None:
    """Keep sixteen colours: thin lines over each other make a PNG of all colours five times as large."""
    from PIL import Image

    with Image.open(picture) as image:
        image.convert("RGB").quantize(16).save(picture, optimize=True)


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
