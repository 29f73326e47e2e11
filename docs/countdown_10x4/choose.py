"""What validation chooses: ``copied RUN``, ``budget REPORT`` and ``temperature REPORTS ARM`` (see run.sh)."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

from asyncthink.train.progress import read_metrics

COPIED = 0.98
BUDGET = (0.68, 0.70)
SMOKE = bool(os.environ.get("SMOKE"))  # tiny runs meet no rule


def copied(run: Path) -> int:
    """Whether an organizer of the cold start copies its answer right: 1, and a line, if it does not."""
    share = [line["held_out"]["organizer/final"] for line in read_metrics(run / "metrics.jsonl") if "held_out" in line]
    print(f"{run.name}: {share[-1]:.3f} of held-out organizers end right (expected at least {COPIED})")
    return 0 if share[-1] >= COPIED or SMOKE else 1


def budget(report: Path) -> int:
    """Whether `parallel` solves what the rule asks for under this budget."""
    made = json.loads(report.read_text())
    solved = made["rows"][0]["at_least"]["4"]["value"]
    print(f"budget {made['budget']}: parallel solves {solved:.3f} (expected {BUDGET[0]} to {BUDGET[1]})")
    return 0 if BUDGET[0] <= solved <= BUDGET[1] or SMOKE else 1


def temperature(reports: Path, arm: str) -> int:
    """Print the temperature at which the arm solves most, then has the shortest path, over all its seeds."""
    by_heat: dict[float, list[tuple[float, float]]] = {}
    for file in sorted(reports.glob(f"sweep-{arm}-*.json")):
        made: Any = json.loads(file.read_text())
        row = made["rows"][0]
        figures = (row["at_least"]["4"]["value"], -row["critical_path_tokens"]["value"])
        by_heat.setdefault(made["temperature"], []).append(figures)
    if not by_heat:
        print(f"choose.py: there is no sweep of {arm} in {reports}; run `run.sh sweep {arm} SEED`", file=sys.stderr)
        return 1
    means = {heat: tuple(fmean(column) for column in zip(*rows, strict=True)) for heat, rows in by_heat.items()}
    print(max(means, key=lambda heat: means[heat]))
    return 0


if __name__ == "__main__":
    what, path, *rest = sys.argv[1:]
    sys.exit({"copied": copied, "budget": budget, "temperature": temperature}[what](Path(path), *rest))
