"""``page.py collect RUNS``: what the page needs of the runs, into ``data/``; ``page.py``: tables and pictures again.

Everything on ../results.md between ``<!-- table: NAME -->`` and ``<!-- end -->``, and every picture, is made
from the committed files in ``data/`` by the second form.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from asyncthink.files import write_whole
from asyncthink.train.progress import read_metrics
from tables import table_of, validations

HERE = Path(__file__).parent
DATA, PAGE = HERE / "data", HERE.parent / "results.md"
LOGGED = ("reward", "accuracy", "solved", "critical_path_tokens", "total_tokens", "format_errors", "forks")
LOGGED += ("joined_tokens", "unjoined_tokens", "entropy", "clipped", "effective_samples", "off_policy", "groups_silent")
MODES = (("test-asyncthink", "asyncthink"), ("test-parallel", "parallel"), ("test-sequential", "sequential"))
TABLES: dict[str, tuple[tuple[tuple[str, str], ...], str]] = {
    "modes": ((*MODES, ("test-uncapped", "one agent, no budget")), "parallel"),
    "ablations": (
        (
            ("test-free", "RL"),
            ("test-no-path", "RL without the path reward"),
            ("test-paper", "RL by the paper's reward (η, divided by the deviation)"),
            ("test-any-deal", "without RL"),
            ("test-no-cold", "without the cold start of the protocol"),
        ),
        "RL",
    ),
    "before": (
        (
            ("before-asyncthink", "asyncthink"),
            ("before-parallel", "parallel"),
            ("before-sequential", "sequential"),
            ("before-no-rl", "without RL"),
        ),
        "parallel",
    ),
    "transfer": (
        (
            ("sudoku-asyncthink", "asyncthink"),
            ("sudoku-no-rl", "organizer without RL"),
            ("sudoku-parallel", "parallel"),
            ("sudoku-sequential", "sequential"),
        ),
        "sequential",
    ),
}
RUNS = (
    ("asyncthink", "asyncthink"),
    ("parallel", "parallel, temperature 1"),
    ("sequential", "sequential"),
    ("free", "shown any deal"),
    ("no-path", "shown any deal, without the path reward"),
    ("paper", "shown any deal, the paper's reward"),
)
_BLOCK = re.compile(r"(<!-- table: ([a-z-]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def collect(runs: Path) -> None:
    """Configurations, shortened logs and reports of all finished runs."""
    DATA.mkdir(exist_ok=True)

    def copied(source: Path, name: str) -> None:
        """Folders of the runs by the name that run.sh gives them, wherever they were made."""
        write_whole(DATA / name, source.read_text(encoding="utf-8").replace(str(runs), "runs/countdown_10x4"))

    for file in runs.glob("reports/*.json"):
        copied(file, file.name)
    finished = sorted(folder for folder in runs.iterdir() if (folder / "finished").exists())
    named = {folder.resolve() for folder in finished if folder.is_symlink()}  # an arm at the chosen budget
    for run in (folder for folder in finished if folder.is_symlink() or folder.resolve() not in named):
        copied(run / "config.json", f"{run.name}.config.json")
        write_whole(DATA / f"{run.name}.log.json", json.dumps(shortened(run / "metrics.jsonl")))


def shortened(log: Path) -> dict[str, Any]:
    """The columns of a log that a curve or a claim needs; four digits are enough."""
    lines = read_metrics(log)
    steps = [line for line in lines if "loss" in line]
    known = [name for name in ("step", "tokens", "seconds", "loss", *LOGGED) if steps and name in steps[0]]
    notes = [line for line in lines if "loss" not in line]
    return {
        **{name: [_short(line[name]) for line in steps] for name in known},
        "notes": [{name: value for name, value in line.items() if name != "tokens"} for line in notes],
    }


def _short(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


def draw() -> list[str]:
    """The pictures for which there are data: accuracy against path, and validations over the steps."""
    return [name for name, drawn in (("frontier", draw_frontier()), ("validation", draw_validation())) if drawn]


def draw_frontier() -> bool:
    """Puzzles solved against the path under several budgets, a line a mode."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.5, 4.5), layout="constrained")
    axis = figure.subplots()
    for _, mode in MODES:
        reports = [json.loads(file.read_text()) for file in DATA.glob(f"frontier-{mode}-*.json")]
        points = sorted(
            (row["critical_path_tokens"]["value"], 100 * row["at_least"]["4"]["value"])
            for row in (report["rows"][0] for report in reports)
        )
        if points:
            axis.plot(*zip(*points, strict=True), marker="o", label=mode)
    if not axis.lines:
        return False
    axis.set(xlabel="critical path, tokens", ylabel="test puzzles with all four solutions, percent")
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(HERE / "frontier.png", dpi=110)
    return True


def draw_validation() -> bool:
    """Puzzles solved and path at every validation of the trained arms."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for file in sorted(DATA.glob("*-[0-9].log.json")):
        notes = [line for line in json.loads(file.read_text())["notes"] if "validation" in line]
        if notes:
            steps, name = [line["step"] for line in notes], file.name.removesuffix(".log.json")
            left.plot(steps, [100 * line["validation"]["solved"] for line in notes], marker="o", label=name)
            right.plot(steps, [line["validation"]["critical_path_tokens"] for line in notes], marker="o", label=name)
    if not left.lines:
        return False
    left.set(xlabel="steps of GRPO", ylabel="validation puzzles with all four, percent", ylim=(0, 102))
    right.set(xlabel="steps of GRPO", ylabel="critical path, tokens", ylim=(0, None))
    for axis in (left, right):
        axis.grid(alpha=0.3)
    right.legend(fontsize=8)
    figure.savefig(HERE / "validation.png", dpi=110)
    return True


def with_tables(text: str) -> str:
    """The page with its tables made again from ``data/``. Raises ValueError if a table has no place on it."""
    tables = {name: table_of(DATA, arms, against) for name, (arms, against) in TABLES.items()}
    tables["validation"] = validations(DATA, RUNS)
    missing = tables.keys() - {match[2] for match in _BLOCK.finditer(text)}
    if missing:
        raise ValueError(f"page: expected a place for each table, got none for {', '.join(sorted(missing))}")
    return _BLOCK.sub(lambda m: f"{m[1]}{tables[m[2]]}\n{m[4]}" if m[2] in tables else m[0], text)


def main() -> None:
    if sys.argv[1:2] == ["collect"]:
        collect(Path(sys.argv[2]))
    text = with_tables(PAGE.read_text(encoding="utf-8"))
    pictures = draw()
    write_whole(PAGE, text)
    print(f"{PAGE.name}: {', '.join([*TABLES, 'validation', *pictures])}")


if __name__ == "__main__":
    main()
