"""The pictures of `report.py`: each from the data of one table; False where the data do not hold what it shows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

Rows = list[dict[str, Any]]
#: An engine looks the same in every panel.
COLORS = {
    "ours": "C0",
    "eager": "#9ecae1",
    "compiled": "C1",
    "int8": "#9e9ac8",
    "int4": "#54278f",
    "transformers": "C2",
    "llama.cpp": "C3",
}


def ratios(row: dict[str, Any]) -> list[float]:
    """The peers' times over ours."""
    return [value for name, value in row.items() if name.startswith("x ") and isinstance(value, float)]


def tree_attention_picture(data: dict[str, Any], path: Path) -> bool:
    """Latency over the prefix, a panel for each dtype; ours, the fastest peer and the limit."""
    rows: Rows = data["rows"]
    dtypes = sorted({row["dtype"] for row in rows})
    figure, axes = pyplot.subplots(1, len(dtypes), figsize=(5.2 * len(dtypes), 3.8), sharey=True, squeeze=False)
    for axis, dtype in zip(axes[0], dtypes, strict=True):
        for color, branches in zip(("C0", "C1", "C2", "C3"), (1, 4, 8, 16), strict=True):
            mine = [r for r in rows if r["dtype"] == dtype and r["shape"].startswith(f"{branches} x")]
            mine.sort(key=lambda row: int(row["shape"].split(" x ")[1]))
            x, ours = [int(r["shape"].split(" x ")[1]) for r in mine], [r["median us"] / 1e3 for r in mine]
            peer = [min(ratios(r)) * ms for r, ms in zip(mine, ours, strict=True)]
            limit = [r["% of limit"] / 100 * ms for r, ms in zip(mine, ours, strict=True)]
            axis.loglog(x, ours, "o-", color=color, label=f"{branches} branches")
            axis.loglog(x, peer, "x--", color=color, alpha=0.6)
            axis.loglog(x, limit, ":", color=color, alpha=0.6)
        axis.set(title=dtype, xlabel="prefix tokens", xticks=x, xticklabels=[f"{n:,}" for n in x])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("ms a layer")
    axes[0][0].legend(fontsize=8, title="ours; dashed: fastest peer; dotted: limit", title_fontsize=7)
    return _save(figure, path)


def generation_picture(data: dict[str, Any], path: Path) -> bool:
    """Tokens a second of all branches, a group of bars for each cell, a panel for each dtype."""
    rows: Rows = data["rows"]
    dtypes = sorted({row["dtype"] for row in rows})
    figure, axes = pyplot.subplots(1, len(dtypes), figsize=(8 * len(dtypes), 3.8), squeeze=False)
    for axis, dtype in zip(axes[0], dtypes, strict=True):
        mine = [row for row in rows if row["dtype"] == dtype]
        engines = {"ours": "tokens/s"} | {n.removesuffix(" tokens/s"): n for n in mine[0] if n.endswith(" tokens/s")}
        width = 0.82 / len(engines)
        for number, (engine, column) in enumerate(engines.items()):
            x = [cell + width * number for cell in range(len(mine))]
            color = COLORS.get(engine, "C7")
            bars = axis.bar(x, [row[column] for row in mine], 0.93 * width, label=engine, color=color)
            axis.bar_label(bars, fmt="%.0f", fontsize=6)
        ticks = [f"{row['branches']} x {row['prefix']:,}" for row in mine]
        axis.set_xticks([cell + width * (len(engines) - 1) / 2 for cell in range(len(mine))], ticks, fontsize=8)
        axis.set(title=dtype, ylabel="tokens/s, all branches", xlabel="branches x prefix")
        axis.set_ylim(top=1.18 * axis.get_ylim()[1])  # room for the legend
    axes[0][0].legend(loc="upper center", ncols=len(engines), fontsize=8)
    return _save(figure, path)


def roofline_picture(data: dict[str, Any], path: Path) -> bool:
    """Operations a second over operations a byte: every cell below the roof that was measured in the same run."""
    if "limits" not in data:
        return False
    figure, axis = pyplot.subplots(figsize=(7, 4.4))
    bandwidth = data["limits"]["bandwidth"] / 1e9
    for color, dtype, peak in (("C0", "bfloat16", "bf16"), ("C1", "float32", "f32")):
        rows = [row for row in data["rows"] if row["dtype"] == dtype]
        top = data["limits"][peak] / 1e9
        if not rows:
            continue
        axis.loglog([0.5, top / bandwidth, 200], [0.5 * bandwidth, top, top], "-", color=color, alpha=0.7)
        for marker, branches in zip("os^D", (1, 4, 8, 16), strict=True):
            mine = [row for row in rows if row["shape"].startswith(f"{branches} x")]
            x, y = [row["GFLOP/s"] / row["GB/s"] for row in mine], [row["GFLOP/s"] for row in mine]
            axis.loglog(x, y, marker, color=color, alpha=0.8, label=f"{dtype}, {branches} branches")
    axis.set(xlabel="operations a byte (each K/V byte read once)", ylabel="GFLOP/s")
    axis.set_title("tree attention; lines: the best that a probe or a call reached in the run")
    for one, ticks in ((axis.set_xticks, (0.5, 1, 2, 5, 10, 20, 50, 100, 200)), (axis.set_yticks, (50, 100, 200, 400))):
        one(ticks, [f"{tick:g}" for tick in ticks])
    axis.minorticks_off()
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7, ncols=2)
    return _save(figure, path)


def _save(figure: Any, path: Path) -> bool:
    figure.tight_layout()
    figure.savefig(path, dpi=80, facecolor="white")
    pyplot.close(figure)
    return True


#: By table: the name of a file, and what draws it.
PICTURES: dict[str, dict[str, Callable[[dict[str, Any], Path], bool]]] = {
    "tree_attention": {"tree_attention": tree_attention_picture, "roofline": roofline_picture},
    "generation": {"generation": generation_picture},
}
