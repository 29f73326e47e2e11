"""bench/one_table.py: rows that are done are not run again, a line that was cut off is; the table says what was run."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "bench"))

from one_table import BRANCHES, Row, done, markdown, measure, names, run

WANTED = [name for name in names(["tiny"]) if "compiled" not in name and "llama.cpp" not in name]


def row(name: str, rate: float = 1.0) -> Row:
    cells = {f"{branches} x 8": {"tokens/s": rate * branches} for branches in BRANCHES}
    made = {"name": name, "cells": cells, "probe ms": [1.0, 2.0], "note": "", "machine": "m"}
    return made | {"threads": 1, "torch": "t"}


def test_rows_of_every_engine_and_model() -> None:
    every = list(names(["smollm2", "qwen3-0.6b"]))
    assert len(every) == len(set(every)) == 26
    assert "qwen3-0.6b ours compiled int4" in every and "smollm2 llama.cpp Q8_0" in every


def test_a_run_goes_on_where_it_ended(tmp_path: Path) -> None:
    def dies(name: str) -> Row:
        if name == WANTED[3]:
            raise KeyboardInterrupt
        return row(name)

    with pytest.raises(KeyboardInterrupt):
        run(WANTED, tmp_path, dies)
    assert list(done(tmp_path)) == WANTED[:3]
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write(json.dumps(row(WANTED[3]))[:40])  # the machine went off
    measured: list[str] = []
    run(WANTED, tmp_path, lambda name: (measured.append(name), row(name))[1])
    assert measured == WANTED[3:] and list(done(tmp_path)) == WANTED
    run(WANTED, tmp_path, dies)  # nothing is left to run
    assert (tmp_path / "table.md").read_text() == markdown(done(tmp_path))


def test_the_table_compares_at_equal_bits() -> None:
    rates = {"ours float32": 1, "ours bfloat16": 2, "ours int8": 6, "transformers float32": 0.5, "llama.cpp Q8_0": 4}
    text = markdown({f"tiny {name}": row(f"tiny {name}", rate) for name, rate in rates.items()})
    assert "| ours int8 | 6 | 24 | 48 |" in text
    compared = re.findall(r"^\| (\S.* : .*) \| (\S+) \| \2 \| \2 \|$", text, re.MULTILINE)
    assert dict(compared) == {
        "ours float32 : transformers float32": "2",
        "ours float32 : ours bfloat16": "0.5",
        "ours int8 : llama.cpp Q8_0": "1.5",
        "ours int8 : ours bfloat16": "3",
    }


@pytest.mark.parametrize("name", ["tiny ours int8", "tiny transformers float32"])
def test_an_engine_is_measured(tmp_path: Path, name: str) -> None:
    found = measure(name, (16,), 0.0, None, tmp_path)
    assert found["name"] == name
    assert list(found["cells"]) == ["1 x 16", "4 x 16", "8 x 16"]
    assert all(cell["tokens/s"] > 0 for cell in found["cells"].values())
