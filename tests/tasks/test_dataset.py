"""Tasks from data sets: any columns of any file that ``datasets`` reads, graded by meaning; every error says what."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from asyncthink.tasks import Math, task
from asyncthink.tasks.query import split_query

ROWS = [{"Q": f"What is {k} + {k}?", "A": f"{k} + {k} = \n#### {2 * k}", "id": k} for k in range(1, 41)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No network, and no files outside of the test's folder."""
    datasets = pytest.importorskip("datasets", reason="the extra datasets is not installed")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def as_lines(path: Path) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))


def as_table(path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(ROWS[0]))
        writer.writeheader()
        writer.writerows(ROWS)


def as_parquet(path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)


@pytest.mark.parametrize(("ending", "write"), [("jsonl", as_lines), ("csv", as_table), ("parquet", as_parquet)])
def test_columns_of_every_kind_of_file(tmp_path: Path, ending: str, write: Any) -> None:
    path = tmp_path / f"d.{ending}"
    write(path)
    spec = f"{path}?question=Q&answer=A&after=%23%23%23%23"
    known = task(f"dataset:{spec}")
    assert isinstance(known, Math)
    assert known.name == f"dataset:{spec}"
    training = {known.sample(seed) for seed in range(40)}
    held_out = {known.sample(seed, held_out=True) for seed in range(40)}
    assert len(training) + len(held_out) == 40
    assert held_out
    puzzle = known.sample(0)
    assert known.prompt(puzzle) == puzzle.question
    value = int(puzzle.answer)
    assert [
        known.verify(puzzle, answer) for answer in (f"{value}.0", f"The sum is {value}.", str(value + 1), None)
    ] == [
        *(1.0, 1.0),
        *(0.0, 0.0),
    ]
    every = task(f"dataset-test:{spec}")
    assert len({every.sample(seed, held_out=True) for seed in range(40)}) == 40
    with pytest.raises(ValueError, match="has no training records"):
        every.sample(0)


def test_errors_say_what_was_expected(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    as_lines(path)
    (tmp_path / "bad.jsonl").write_text('{"question": \n')
    (tmp_path / "bad.parquet").write_text("none")
    (tmp_path / "empty.csv").write_text("question,answer\n")
    for spec, reason in [
        (f"{path}", r"d.jsonl: expected a column 'question', got Q, A, id"),
        (f"{path}?question=Q&answer=B", r"d.jsonl: expected a column 'B', got Q, A, id"),
        (f"{path}?question=Q&answer=A&after=!!", r"d.jsonl, record 1: expected an answer with '!!', got '1 \+ 1"),
        (f"{path}?colour=Q", r"expected options question, answer, split, name, after, got 'colour'"),
        (f"{path}?question=Q&question=A", r"expected question once behind '\?'"),
        (f"{path}?question", r"expected name=value joined by '&' behind '\?', got 'question'"),
        (f"{path}?question=Q&answer=A&split=night", r"d.jsonl cannot be read: ValueError: .*night"),
        (f"{tmp_path / 'no.csv'}", r"there is no file .*no.csv"),
        (f"{tmp_path / 'bad.jsonl'}", r"bad.jsonl cannot be read: "),
        (f"{tmp_path / 'bad.parquet'}", r"bad.parquet cannot be read: "),
        (f"{tmp_path / 'empty.csv'}", r"empty.csv cannot be read: ValueError: .*no data"),
        ("nobody/nothing", r"dataset: nobody/nothing cannot be read: "),
    ]:
        with pytest.raises(ValueError, match=reason):
            task(f"dataset:{spec}")


def test_numbers_are_answers(tmp_path: Path) -> None:
    (tmp_path / "n.csv").write_text("question,answer\nhalf?,0.5\nfour?,4.0\nempty?,\n")
    with pytest.warns(UserWarning, match="1 of 3 records have no answer"):
        known = task(f"dataset-test:{tmp_path / 'n.csv'}")
    assert [known.sample(seed, True).answer for seed in range(2)] == ["0.5", "4"]


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"asyncthink-kernels\[datasets\]"):
        task("dataset:x.jsonl")


def test_a_query_without_options() -> None:
    assert split_query("a/b") == ("a/b", {})
