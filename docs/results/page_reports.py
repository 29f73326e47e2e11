"""Evaluation reports as files, and rows taken from them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: What two reports must share for their rows to stand in one table.
SHARED = ("task", "asked", "puzzles", "questions_sha256", "pool", "budget", "temperature", "draws", "seed")


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a table: its label, the report's file name, and which of its rows; "" is the only one."""

    label: str
    file: str
    row: str = ""


@dataclass(frozen=True, slots=True)
class Lines:
    """Rows of one or several reports about the same puzzles; ``about`` holds what the reports share."""

    about: dict[str, Any]
    rows: list[dict[str, Any]]


def read_lines(folder: Path, lines: Sequence[Line]) -> Lines:
    """The rows of ``lines`` from the reports in ``folder``, each with its label as ``name``.

    Raises ValueError for a report that is not there or is none, for a row that it lacks, and for reports about other
    puzzles or under other settings.
    """
    about: dict[str, Any] = {}
    rows = []
    for line in lines:
        report = _read(folder / line.file)
        for name in SHARED:
            if about and report[name] != about[name]:
                raise ValueError(
                    f"{line.file}: expected {name} {about[name]} as in {lines[0].file}, got {report[name]}"
                )
        about = about or {name: value for name, value in report.items() if name not in ("rows", "comparisons")}
        rows.append(_row(report, line) | {"name": line.label})
    return Lines(about, rows)


def _read(path: Path) -> dict[str, Any]:
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        if {*SHARED, "rows", "machine", "timed_puzzles"} <= set(report):
            return dict(report)
    except FileNotFoundError:
        raise ValueError(f"{path}: expected a report of `asyncthink eval --json`, got no file") from None
    except (ValueError, TypeError):
        pass
    raise ValueError(f"{path}: expected a report of `asyncthink eval --json`, got something else")


def _row(report: dict[str, Any], line: Line) -> dict[str, Any]:
    names = [row["name"] for row in report["rows"]]
    if line.row == "" and len(names) == 1:
        return dict(report["rows"][0])
    if line.row not in names:
        raise ValueError(f"{line.file}: expected row {line.row!r}, got {', '.join(names)}")
    return dict(report["rows"][names.index(line.row)])
