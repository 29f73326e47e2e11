"""`pytest bench/ --benchmark` times; without the flag every bench runs once and only its result is checked.

`--results FOLDER` also writes the tables there. Timings mean something on an idle machine only.
"""

from __future__ import annotations

from pathlib import Path

import pytest

TABLES = pytest.StashKey[dict[str, "Table"]]()


class Table:
    """Rows of one bench file, printed when all have run."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.rows: list[dict[str, str | float]] = []

    def add(self, row: dict[str, str | float]) -> None:
        self.rows.append(row)

    def markdown(self) -> str:
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        lines = [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
        lines += [f"| {' | '.join(_text(row.get(name, '')) for name in names)} |" for row in self.rows]
        return "\n".join([*lines, ""])


def _text(value: str | float) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--benchmark", action="store_true", help="time the benches; without it only results are checked")
    parser.addoption("--results", metavar="FOLDER", help="also write tables of results there, as Markdown and JSON")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[TABLES] = {}
    if not config.getoption("--benchmark"):
        config.option.benchmark_disable = True


@pytest.fixture
def table(request: pytest.FixtureRequest) -> Table:
    """The table of this bench file."""
    title = request.path.stem.removeprefix("bench_")
    return request.config.stash[TABLES].setdefault(title, Table(title))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    folder = config.getoption("--results")
    for table in (table for table in config.stash[TABLES].values() if table.rows):
        terminalreporter.write_line(f"\n{table.title}\n\n{table.markdown()}")
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            (Path(folder) / f"{table.title}.md").write_text(table.markdown(), encoding="utf-8")
