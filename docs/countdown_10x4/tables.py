"""The tables of ../countdown_10x4.md from reports in ``data/``: rows over seeds, intervals over seeds and puzzles."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
VALIDATED = (("solved", "{:.1f}", 100), ("accuracy", "{:.1f}", 100), ("format_errors", "{:.1f}", 100))
VALIDATED += (("critical_path_tokens", "{:.0f}", 1),)
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Arm:
    """One arm: its figures of each seed and puzzle, [S, P] by name, and the reports they are from."""

    label: str
    columns: dict[str, Floats]
    reports: list[dict[str, Any]]
    seconds: Floats | None = None  # [N], of one seed

    @property
    def seeds(self) -> int:
        return len(self.reports)


def read_arm(data: Path, name: str, label: str) -> Arm | None:
    """The reports ``NAME-SEED.json``; None if there is none. Raises ValueError for reports on different puzzles."""
    reports = [json.loads(file.read_text()) for file in sorted(data.glob(f"{name}-[0-9].json"))]
    if not reports:
        return None
    if len({report["questions_sha256"] for report in reports}) > 1:
        raise ValueError(f"{name}: expected reports on the same puzzles")
    rows = [report["rows"][0] for report in reports]
    columns = {key: np.array([row["per_puzzle"][key] for row in rows]) for key in rows[0]["per_puzzle"]}
    timed = data / "seconds.json"
    of_task = name.startswith("test-") and timed.is_file()  # other reports are of another task
    seconds = json.loads(timed.read_text())["seconds"].get(label) if of_task else None
    return Arm(label, columns, reports, None if seconds is None else np.array(seconds))


class Intervals:
    """Percentile bootstrap: of S seeds S are drawn, of P puzzles P, the same puzzles for all arms; 95%."""

    def __init__(self, puzzles: int) -> None:
        self.rng = np.random.default_rng(0)
        self.puzzles = self.rng.integers(puzzles, size=(RESAMPLES, puzzles))

    def resampled(self, values: Floats) -> Floats:
        """[RESAMPLES] means of ``values`` [S, P]."""
        seeds = np.random.default_rng(1).integers(len(values), size=(RESAMPLES, len(values)))
        means = np.empty(RESAMPLES)
        for number, (seed, puzzle) in enumerate(zip(seeds, self.puzzles, strict=True)):
            means[number] = values[seed].mean(0)[puzzle].mean()
        return means

    def text(self, value: float, resampled: Floats, pattern: str, scale: float = 1) -> str:
        low, high = np.quantile(resampled, [0.025, 0.975])
        shown = [pattern.format(scale * float(number)) for number in (value, low, high)]
        return f"{shown[0]} [{shown[1]}, {shown[2]}]"

    def mean(self, arm: Arm, name: str, pattern: str, scale: float = 1) -> str:
        values = arm.columns[name]
        return self.text(float(values.mean()), self.resampled(values), pattern, scale)

    def ratio(self, arm: Arm, other: Arm, name: str) -> str:
        one, two = arm.columns[name], other.columns[name]
        return self.text(float(one.mean() / two.mean()), self.resampled(one) / self.resampled(two), "{:.3f}")

    def difference(self, arm: Arm, other: Arm, name: str) -> str:
        one, two = arm.columns[name], other.columns[name]
        return self.text(float(one.mean() - two.mean()), self.resampled(one) - self.resampled(two), "{:+.1f}", 100)


def tested_heat(arm: Arm) -> str:
    return f"{arm.reports[0]['temperature']:g}"


def mean_of(arm: Arm, name: str, pattern: str, scale: float = 1) -> str:
    """The mean over seeds of a figure that a report has only as a mean."""
    return pattern.format(scale * float(np.mean([report["rows"][0][name]["value"] for report in arm.reports])))


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str] = ()) -> str:
    lines = [["", *headings], ["---", *("---:" for _ in headings)], *rows]
    text = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
    return "\n".join([text, *(["", *(f"- {note}" for note in notes)] if notes else [])])


def table_of(data: Path, arms: Sequence[tuple[str, str]], against: str) -> str:
    """A table of the arms (name of the reports, label) that there are; ratios to the arm labelled ``against``."""
    read = [arm for name, label in arms if (arm := read_arm(data, name, label)) is not None]
    if not read:
        return "Not run yet."
    other = next((arm for arm in read if arm.label == against), None)
    intervals = Intervals(read[0].columns["solved"].shape[1])
    path = "critical_path_tokens"
    columns: dict[str, Callable[[Arm], str]] = {
        "all 4 %": lambda arm: intervals.mean(arm, "solved", "{:.1f}", 100),
        "found %": lambda arm: intervals.mean(arm, "accuracy", "{:.1f}", 100),
        "critical path, tokens": lambda arm: intervals.mean(arm, path, "{:.1f}"),
        f"/ {against}": lambda arm: "" if other is None or arm is other else intervals.ratio(arm, other, path),
        "all tokens": lambda arm: mean_of(arm, "total_tokens", "{:.0f}"),
        "format errors %": lambda arm: intervals.mean(arm, "format_errors", "{:.1f}", 100),
        "temperature": tested_heat,
        "seeds": lambda arm: str(arm.seeds),
    }
    rows = [[arm.label, *(cell(arm) for cell in columns.values())] for arm in read]
    first = read[0]
    notes = [
        f"{first.label} - {arm.label}: all 4 {intervals.difference(first, arm, 'solved')} points, "
        f"critical path x{intervals.ratio(first, arm, path)}"
        for arm in read[1:]
    ]
    return markdown(list(columns), rows, notes + _seconds(read))


def validations(data: Path, runs: Sequence[tuple[str, str]]) -> str:
    """What the validations of these runs (name, label) said, one after the other, of the first seed that there is."""
    rows = []
    for run, label in runs:
        log = next(iter(sorted(data.glob(f"{run}-[0-9].log.json"))), None)
        notes = [] if log is None else [note for note in json.loads(log.read_text())["notes"] if "validation" in note]
        if notes:
            seen = [note["validation"] for note in notes]
            shown = [", ".join(str(note["step"]) for note in notes)]
            for name, pattern, scale in VALIDATED:
                shown.append(", ".join(pattern.format(scale * each[name]) for each in seen))
            rows.append([label, *shown])
    headings = ("steps", "all 4 %", "found %", "format errors %", "critical path, tokens")
    return markdown(headings, rows) if rows else "Not run yet."


def _seconds(arms: Sequence[Arm]) -> list[str]:
    timed = [(arm, arm.seconds) for arm in arms if arm.seconds is not None]
    if len(timed) < 2:
        return []
    medians = [(arm.label, float(np.median(seconds))) for arm, seconds in timed]
    label, first = medians[0]
    shown = ", ".join(f"x{first / other:.3f} of {name} ({other:.3f} s)" for name, other in medians[1:])
    return [f"seconds of one episode at a time, medians, one seed: {label} {first:.3f} s, {shown}"]
