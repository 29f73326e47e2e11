"""Pictures of a record: our time over branches and prefix, and the share of copy bandwidth over bytes."""

from __future__ import annotations

import re
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .goals import LARGE, LARGE_SHARE, MB, MIDDLE, MIDDLE_SHARE, OURS, share
from .record import Record

PREFIX = re.compile(r"(?P<heads>\d+/\d+) 1,(?P<branches>\d+)\|(?P<prefix>\d+),(?P<suffix>128)")


def draw(record: Record, stem: Path) -> list[Path]:
    """Writes `<stem>-latency.png` and `<stem>-bandwidth.png`, the first only where prefixes were measured."""
    paths = []
    curves = by_heads(record)
    if curves:
        figure = Figure(figsize=(11, 4.2), layout="constrained")
        over_branches, over_prefix = figure.subplots(1, 2)
        heads = max(curves, key=lambda each: len(curves[each]))
        latency(over_branches, curves[heads], f"{heads} heads, over branches", over="branches")
        latency(over_prefix, curves[heads], f"{heads} heads, over the prefix", over="prefix")
        figure.suptitle(f"{record.device['name']}, {record.date}: L2 flushed, suffixes of 128 tokens")
        paths.append(_saved(figure, stem, "latency"))
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    bandwidth(figure.subplots(), record)
    paths.append(_saved(figure, stem, "bandwidth"))
    return paths


def by_heads(record: Record) -> dict[str, dict[tuple[int, int], dict[str, float]]]:
    """For cells of branches behind a prefix: heads -> (branches, prefix) -> {"ours", "best peer"} in microseconds."""
    found: dict[str, dict[tuple[int, int], dict[str, float]]] = {}
    for row in record.cells:
        match, ours, best = PREFIX.fullmatch(row.name), row.entry(OURS), row.best_peer
        if match is None or ours is None or ours.flushed is None:
            continue
        times = {"ours": 1e6 * ours.flushed.median}
        if best is not None and best.flushed is not None:
            times["best peer"] = 1e6 * best.flushed.median
        found.setdefault(match["heads"], {})[int(match["branches"]), int(match["prefix"])] = times
    return found


def latency(axes: Axes, cells: dict[tuple[int, int], dict[str, float]], title: str, *, over: str) -> None:
    """A line for each value of the other coordinate; ours solid, the best peer dashed."""
    x_of, of = (0, 1) if over == "branches" else (1, 0)
    for colour, fixed in enumerate(sorted({at[of] for at in cells})):
        for name, style in (("ours", "o-"), ("best peer", "x--")):
            points = sorted((at[x_of], times[name]) for at, times in cells.items() if at[of] == fixed and name in times)
            if points:
                label = f"{'prefix' if of else 'branches'} {fixed}" if name == "ours" else None
                axes.plot(*zip(*points, strict=True), style, color=f"C{colour}", label=label)
    axes.set(xscale="log", yscale="log", xlabel=over, ylabel="microseconds", title=title)
    axes.legend(fontsize=8, title="ours solid, best peer dashed", title_fontsize=8)
    axes.grid(alpha=0.3, which="both")


def bandwidth(axes: Axes, record: Record) -> None:
    """A point for each cell, and the goals as lines."""
    heads: dict[str, list[tuple[float, float]]] = {}
    for row in record.cells:
        part = share(row, record)
        if part is not None:
            heads.setdefault(row.name.partition(" ")[0], []).append((row.bytes / MB, 100 * part))
    for name, points in heads.items():
        axes.plot(*zip(*points, strict=True), "o", label=name, alpha=0.8)
    most = max((size for points in heads.values() for size, _ in points), default=2 * LARGE / MB)
    axes.hlines(100 * LARGE_SHARE, LARGE / MB, max(most, 2 * LARGE / MB), color="grey", linestyles="dashed")
    axes.hlines(100 * MIDDLE_SHARE, MIDDLE / MB, LARGE / MB, color="grey", linestyles="dashed")
    axes.set(xscale="log", xlabel="unique bytes, MB", ylabel="% of copy bandwidth", ylim=(0, None))
    axes.set_title(f"{record.device['name']}, {record.date}: L2 flushed (dashed: goals)")
    if heads:
        axes.legend(title="heads", fontsize=8, title_fontsize=8)
    axes.grid(alpha=0.3, which="both")


def _saved(figure: Figure, stem: Path, kind: str) -> Path:
    path = stem.with_name(f"{stem.name}-{kind}.png")
    figure.savefig(path, dpi=110)
    return path
