"""Tables and pictures of the results page, from reports and logs written here."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from asyncthink.eval.bootstrap import Bootstrap
from asyncthink.train import curve

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "docs" / "results"))

import make_page as results  # noqa: E402
from page_pictures import CURVES, PICTURES, draw  # noqa: E402
from page_tables import SHEETS  # noqa: E402

ABOUT = {
    "task": "countdown-8", "asked": 4, "puzzles": 4, "first": 0, "questions_sha256": "ab", "pool": 4, "budget": 300,
    "temperature": 1.0, "draws": 2, "seed": 0, "timed_puzzles": 2, "machine": "CPU, 1 thread", "comparisons": [],
}  # fmt: skip
PAGE = "# Results\nProse before.\n\n<!-- table: {} -->\nstale\n<!-- end -->\nProse after, 95%.\n"


def row(name: str, solved: Sequence[float], path: float, seconds: float) -> dict[str, Any]:
    """A report's row: of each puzzle whether it was solved, a path and a duration that all share."""
    bootstrap = Bootstrap(len(solved))
    columns = {
        "solved": list(solved), "accuracy": list(solved), "critical_path_tokens": [path] * 4,
        "eta_agents": [0.5] * 4, "format_errors": [0.25] * 4,
    }  # fmt: skip
    figures = {key: asdict(bootstrap.mean(column)) for key, column in columns.items() if key != "solved"}
    others = {key: asdict(bootstrap.mean([2.0] * 4)) for key in ("total_tokens", "eta_workers", "forks", "joins")}
    timed = asdict(Bootstrap(2).median([seconds] * 2)) | {"each": [seconds] * 2}
    at_least = {str(n): asdict(bootstrap.mean(solved)) for n in range(1, 5)}
    return {
        "name": name, "at_least": at_least, **figures, **others, "errors": {}, "per_puzzle": columns,
        "parameters": 858240, "model": "m", "seconds": timed,
    }  # fmt: skip


def write(folder: Path, name: str, rows: list[dict[str, Any]], **changed: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(ABOUT | changed | {"rows": rows}))


def runs_of(data: Path) -> Path:
    """The folder of training runs that belongs to ``data``."""
    return data.parent / "runs"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The folder of ``results.md`` with all reports that any table or picture reads; runs lie beside it."""
    reports = tmp_path / "results" / "eval"
    modes = [
        row("sequential", [0, 0, 0, 1], 200, 0.4), row("parallel union", [0, 1, 0, 1], 200, 0.5),
        row("asyncthink shared exact", [1, 1, 0.5, 1], 150, 0.35),
    ]  # fmt: skip
    write(reports, "countdown.json", modes)
    write(reports, "longer.json", [modes[1], row("asyncthink shared exact", [1, 1, 1, 1], 140, 0.3)])
    for name in ("no-rl", "no-eta", "no-sft", "sudoku-sft", "sudoku-rl"):
        write(reports, f"{name}.json", [row("asyncthink shared exact", [0, 1, 0, 1], 180, 0.4)])
    joins = [
        f"asyncthink {context} {join}" for context in ("shared", "isolated") for join in ("exact", "append", "link")
    ]
    write(reports, "joins.json", [row(name, [1, 1, 0, 1], 150, 0.4) for name in joins])
    write(reports, "joins-rl.json", [row(name, [1, 0, 0, 1], 140, 0.4) for name in joins[:3]])
    for run in {run for runs in CURVES.values() for run in runs}:
        log = runs_of(tmp_path / "results") / run / "metrics.jsonl"
        log.parent.mkdir(parents=True)
        steps = [
            {"step": step, "loss": 0.1 - step / 10, "reward": step / 10, "eta": 0.5, "accuracy": 0.1 * step}
            for step in (1, 2, 3)
        ]
        log.write_text("".join(f"{json.dumps(line)}\n" for line in steps))
    return tmp_path / "results"


def page(data: Path, *names: str) -> Path:
    path = data.with_suffix(".md")
    path.write_text("".join(PAGE.format(name) for name in names), encoding="utf-8")
    return path


def made(data: Path, name: str) -> str:
    """The markdown of one table."""
    path = page(data, name)
    assert results.update(path, [name]) == [name]
    before, inside, after = re.split(r"<!-- .* -->\n", path.read_text(encoding="utf-8"))
    assert (before, after) == ("# Results\nProse before.\n\n", "Prose after, 95%.\n")
    return inside


def cells(table: str, label: str) -> list[str]:
    (line,) = [line for line in table.splitlines() if line.startswith(f"| {label} |")]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_the_table_of_modes(data: Path) -> None:
    table = made(data, "countdown")
    assert table.startswith(
        "4 held-out `countdown-8` puzzles, 2 draws each, temperature 1, pool 4, at most 300 tokens an agent, models of "
        "858,240 parameters; seconds: 2 puzzles one at a time, CPU, 1 thread."
    )
    assert "|  | >= 1 % | >= 2 % | >= 3 % | all 4 % |" in table
    interval = Bootstrap(4).mean([1, 1, 0.5, 1])
    assert cells(table, "asyncthink")[3] == f"87.5 [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"
    paired = Bootstrap(4).difference([1, 1, 0.5, 1], [0, 1, 0, 1])
    points = f"all 4 +37.5 [{100 * paired.low:.1f}, {100 * paired.high:.1f}] points"
    assert f"- asyncthink - parallel: {points}; critical path x0.750 [0.750, 0.750]; seconds x0.700" in table
    assert table.count("\n- ") == 5


def test_the_table_of_paths(data: Path) -> None:
    table = made(data, "critical-path")
    assert cells(table, "asyncthink")[:2] == ["150.0 [150.0, 150.0]", "0.750 [0.750, 0.750]"]
    assert cells(table, "asyncthink")[2:5] == ["2.0", "0.350 [0.350, 0.350]", "0.700 [0.700, 0.700]"]
    assert cells(table, "parallel")[1] == cells(table, "parallel")[4] == ""


def test_seconds_are_spoken_of_where_every_row_has_them(data: Path) -> None:
    report = json.loads((data / "eval" / "no-rl.json").read_text())
    del report["rows"][0]["seconds"]
    write(data / "eval", "no-rl.json", report["rows"])
    assert "seconds" not in made(data, "ablations").partition("\n")[0]
    assert "seconds: 2 puzzles one at a time, CPU, 1 thread" in made(data, "countdown")


@pytest.mark.parametrize("name", ["ablations", "sudoku", "joins", "joins-after-rl"])
def test_other_tables_have_a_row_a_line(data: Path, name: str) -> None:
    table, sheet = made(data, name), SHEETS[name]
    for line in sheet.lines:
        assert len(cells(table, line.label)) == len(sheet.columns)
    assert table.count("\n- ") == len(sheet.lines) - 1


def test_everything_at_once_and_again(data: Path) -> None:
    path = page(data, *SHEETS)
    command = [sys.executable, str(Path(results.__file__)), str(path), "--runs", str(runs_of(data))]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "python")))}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == f"{path}: {', '.join([*SHEETS, *PICTURES])}\n"
    first = path.read_text(encoding="utf-8")
    assert "stale" not in first and first.count("Prose after, 95%.") == len(SHEETS)
    for picture in PICTURES:
        assert (data / f"{picture}.png").read_bytes().startswith(b"\x89PNG")
    assert results.update(path, ["joins", "countdown"]) == ["joins", "countdown"]
    assert path.read_text(encoding="utf-8") == first
    assert sorted(each.name for each in data.iterdir()) == sorted(["eval", *(f"{p}.png" for p in PICTURES)])


@pytest.mark.filterwarnings("error")
def test_curves_show_what_reinforcement_changes(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    panels: list[str] = []
    panel = curve._panel
    monkeypatch.setattr(curve, "_panel", lambda axis, name, runs: (panels.append(name), panel(axis, name, runs)))
    draw("curves", data / "eval", runs_of(data), data / "curves.png")
    assert panels == ["reward", "accuracy", "eta"], "what the logs report, without the loss"
    panels.clear()
    curve.plot_curves({"one": runs_of(data) / "asyncthink" / "metrics.jsonl"}, data / "one.png")  # no warning
    assert panels == ["loss", "reward", "accuracy", "eta"]


def test_nothing_is_written_where_something_is_missing(data: Path) -> None:
    path = page(data, "countdown", "joins")
    before = path.read_text()
    with pytest.raises(ValueError, match=r"expected one '<!-- table: sudoku -->' .*, got 0"):
        results.update(path, ["countdown", "sudoku"])
    with pytest.raises(ValueError, match=r"only: expected some of countdown, .*frontier, got 'table'"):
        results.update(path, ["table"])
    (data / "eval" / "joins.json").unlink()
    with pytest.raises(ValueError, match=r"joins.json: expected a report of `asyncthink eval --json`, got no file"):
        results.update(path, ["countdown", "joins"])
    (runs_of(data) / "parallel" / "metrics.jsonl").unlink()
    with pytest.raises(ValueError, match=r"metrics.jsonl: expected the log of training run parallel, got no file"):
        results.update(path, ["countdown", "curves"], runs_of(data))
    assert path.read_text() == before
    path.write_text(2 * PAGE.format("countdown"))
    with pytest.raises(ValueError, match="got 2"):
        results.update(path, ["countdown"])


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"questions_sha256": "cd"}, "no-rl.json: expected questions_sha256 ab as in countdown.json, got cd"),
        ({"budget": 700}, "no-rl.json: expected budget 300 as in countdown.json, got 700"),
    ],
)
def test_rows_of_one_table_answer_the_same_questions(data: Path, changed: dict[str, Any], told: str) -> None:
    write(data / "eval", "no-rl.json", [row("asyncthink shared exact", [0, 0, 0, 0], 1, 1)], **changed)
    with pytest.raises(ValueError, match=re.escape(told)):
        results.update(page(data, "ablations"), ["ablations"])


def test_reports_that_are_none(data: Path) -> None:
    write(data / "eval", "sudoku-rl.json", [row("a", [0] * 4, 1, 1), row("b", [0] * 4, 1, 1)])
    with pytest.raises(ValueError, match=r"sudoku-rl.json: expected row '', got a, b"):
        results.update(page(data, "sudoku"), ["sudoku"])
    for content in ("{", "[1]", '{"rows": []}'):
        (data / "eval" / "sudoku-rl.json").write_text(content)
        with pytest.raises(ValueError, match=r"sudoku-rl.json: .* got something else"):
            results.update(page(data, "sudoku"), ["sudoku"])


def test_the_page_in_the_box_has_a_place_for_every_table_and_picture() -> None:
    path = ROOT / "docs" / "results.md"
    text = path.read_text(encoding="utf-8")
    assert results.insert(text, dict.fromkeys(SHEETS, "x")).count("\nx\n<!-- end -->") == len(SHEETS)
    recipe = (path.with_suffix("") / "run.sh").read_text(encoding="utf-8")
    for name in PICTURES:
        assert f"results/{name}.png" in text
    for file in {line.file for sheet in SHEETS.values() for line in sheet.lines}:
        assert file.removesuffix(".json") in recipe, file
    for run in {run for runs in CURVES.values() for run in runs}:
        assert f"train {run} " in recipe, run
