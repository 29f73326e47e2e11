"""The tables: which rows, which columns, and how they read in markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asyncthink.eval.evaluation import compare
from asyncthink.view.report import compared, solved
from page_reports import Line, Lines, read_lines

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Column:
    """``heading`` may hold ``{solved}``; ``cell`` writes a row's cell, given the rows of the table by label."""

    heading: str
    cell: Callable[[Row, dict[str, Row]], str]


@dataclass(frozen=True, slots=True)
class Sheet:
    """A table: its lines and columns; below it ``pairs`` (label, label it is held against), puzzle by puzzle."""

    lines: Sequence[Line]
    columns: Sequence[Column]
    pairs: Sequence[tuple[str, str]] = ()


def share(name: str, heading: str) -> Column:
    """A figure in percent with its interval; ``at_least/2`` reaches into ``at_least``, ``at_least/`` takes its last."""
    return Column(heading, lambda row, _: _interval(_figure(row, name), "{:.1f}", 100))


def number(name: str, heading: str, pattern: str = "{:.1f}") -> Column:
    """A figure in its own unit with its interval."""
    return Column(heading, lambda row, _: _interval(_figure(row, name), pattern))


def plain(name: str, heading: str, pattern: str = "{:.1f}") -> Column:
    """A figure in its own unit; its interval stands in the report."""
    return Column(heading, lambda row, _: pattern.format(_figure(row, name)["value"]))


def ratio_to(label: str, name: str, heading: str) -> Column:
    """The ratio of a figure to that of the line ``label``, paired; empty in that line."""

    def cell(row: Row, rows: dict[str, Row]) -> str:
        if row["name"] == label:
            return ""
        return _interval(compare(row, rows[label])[name], "{:.3f}")

    return Column(heading, cell)


def _figure(row: Row, name: str) -> dict[str, float]:
    outer, slash, inner = name.partition("/")
    if not slash:
        return dict(row[name])
    return dict(row[outer][inner or list(row[outer])[-1]])


def _interval(estimate: dict[str, float], pattern: str, scale: float = 1) -> str:
    value, low, high = (pattern.format(scale * estimate[part]) for part in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def markdown(sheet: Sheet, lines: Lines) -> str:
    """The table with what it is about in front and the paired comparisons behind."""
    about, rows = lines.about, {row["name"]: row for row in lines.rows}
    headings = ["", *(column.heading.format(solved=solved(about["asked"])) for column in sheet.columns)]
    table = [headings, ["---", *("---:" for _ in sheet.columns)]]
    table += [[label, *(column.cell(row, rows) for column in sheet.columns)] for label, row in rows.items()]
    text = [_about(about, lines.rows), "", *("| " + " | ".join(cells) + " |" for cells in table)]
    notes = [f"- {compared(compare(rows[of], rows[against]), about['asked'])}" for of, against in sheet.pairs]
    return "\n".join([*text, "", *notes] if notes else text)


def _about(about: dict[str, Any], rows: Sequence[Row]) -> str:
    draws = f"{about['draws']} draws each, " if about["draws"] > 1 else ""
    heat = f"temperature {about['temperature']:g}" if about["temperature"] else "greedy"
    timed = all("seconds" in row for row in rows)
    seconds = f"; seconds: {about['timed_puzzles']} puzzles one at a time, {about['machine']}" if timed else ""
    sizes = " / ".join(f"{size:,}" for size in sorted({row["parameters"] for row in rows}))
    return (
        f"{about['puzzles']} held-out `{about['task']}` puzzles, {draws}{heat}, pool {about['pool']}, at most "
        f"{about['budget']} tokens an agent, models of {sizes} parameters{seconds}. Brackets: 95% bootstrap intervals."
    )


SEQUENTIAL, PARALLEL, ASYNCTHINK, LONGER = "sequential", "parallel", "asyncthink", "asyncthink, 260 steps more"
_MODES = (
    Line(SEQUENTIAL, "countdown.json", "sequential"),
    Line(PARALLEL, "countdown.json", "parallel union"),
    Line(ASYNCTHINK, "countdown.json", "asyncthink shared exact"),
    Line(LONGER, "longer.json", "asyncthink shared exact"),
)
_ABLATIONS = (
    Line("without RL", "no-rl.json"),
    Line("without the concurrency reward", "no-eta.json"),
    Line("without the cold start of the protocol", "no-sft.json"),
)
_SUDOKU = (Line("SFT", "sudoku-sft.json"), Line("SFT, then RL on countdown only", "sudoku-rl.json"))
_JOINS = tuple(
    Line(f"{context}, {join}", "joins.json", f"asyncthink {context} {join}")
    for context in ("shared", "isolated")
    for join in ("exact", "append", "link")
)
_JOINS_AFTER_RL = tuple(
    Line(join, "joins-rl.json", f"asyncthink shared {join}") for join in ("exact", "append", "link")
)
_PATH = number("critical_path_tokens", "critical path, tokens")
_ETA = plain("eta_agents", "η, agents / c", "{:.2f}")
_ETA_WORKERS = plain("eta_workers", "η, workers / (c-1)", "{:.2f}")
_ERRORS = share("format_errors", "format errors %")
_SOLVED = share("at_least/", "{solved} %")

SHEETS: dict[str, Sheet] = {
    "countdown": Sheet(
        _MODES,
        [*(share(f"at_least/{n}", f">= {n} %") for n in (1, 2, 3)), _SOLVED, _ETA, _ETA_WORKERS, _ERRORS],
        pairs=[
            (ASYNCTHINK, SEQUENTIAL),
            (ASYNCTHINK, PARALLEL),
            (PARALLEL, SEQUENTIAL),
            (LONGER, SEQUENTIAL),
            (LONGER, PARALLEL),
        ],
    ),
    "critical-path": Sheet(
        _MODES,
        [
            _PATH,
            ratio_to(PARALLEL, "critical_path_tokens", "/ parallel"),
            plain("total_tokens", "all tokens"),
            number("seconds", "critical path, seconds (median)", "{:.3f}"),
            ratio_to(PARALLEL, "seconds", "/ parallel"),
            _SOLVED,
        ],
    ),
    "ablations": Sheet(
        [_MODES[2], _MODES[3], *_ABLATIONS],
        [_SOLVED, _PATH, _ETA, _ETA_WORKERS, plain("forks", "forks"), _ERRORS],
        pairs=[(label, ASYNCTHINK) for label in (LONGER, *(line.label for line in _ABLATIONS))],
    ),
    "sudoku": Sheet(
        _SUDOKU,
        [_SOLVED, share("accuracy", "right rows %"), _PATH, _ETA, plain("forks", "forks"), _ERRORS],
        pairs=[(_SUDOKU[1].label, _SUDOKU[0].label)],
    ),
    "joins": Sheet(
        _JOINS,
        [_SOLVED, _PATH, plain("total_tokens", "all tokens"), _ETA, _ERRORS],
        pairs=[(line.label, _JOINS[0].label) for line in _JOINS[1:]],
    ),
    "joins-after-rl": Sheet(
        _JOINS_AFTER_RL,
        [_SOLVED, _PATH, plain("total_tokens", "all tokens"), _ETA, _ERRORS],
        pairs=[(line.label, _JOINS_AFTER_RL[0].label) for line in _JOINS_AFTER_RL[1:]],
    ),
}


def table(name: str, folder: Path) -> str:
    """The markdown of :data:`SHEETS` ``[name]`` from the reports in ``folder``; raises ValueError as they do."""
    return markdown(SHEETS[name], read_lines(folder, SHEETS[name].lines))
