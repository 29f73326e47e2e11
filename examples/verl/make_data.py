"""Puzzles of one of our tasks as the parquet files that verl trains and validates on.

``python examples/verl/make_data.py countdown data/countdown --train 20000 --test 200`` writes ``train.parquet`` and
``test.parquet``. Needs pyarrow, which verl brings, and neither torch nor transformers.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from asyncthink.tasks import Task, task


def row(chosen: Task, name: str, seed: int, held_out: bool) -> dict[str, Any]:
    """The columns that verl reads. ``extra_info["asyncthink"]`` names the puzzle, which gives the reward."""
    return {
        "data_source": name,
        "agent_name": "asyncthink",
        "prompt": [{"role": "user", "content": chosen.prompt(chosen.sample(seed, held_out))}],
        "reward_model": {"style": "rule", "ground_truth": ""},
        "extra_info": {"index": seed, "asyncthink": {"task": name, "seed": seed, "held_out": held_out}},
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", help="countdown, sudoku, math:PATH, ...")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, default=20000, help="puzzles to train on")
    parser.add_argument("--test", type=int, default=200, help="held-out puzzles to validate on")
    given = parser.parse_args(arguments)
    chosen = task(given.task)
    given.folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", given.train), ("test", given.test)):
        rows = [row(chosen, given.task, seed, split == "test") for seed in range(count)]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), given.folder / f"{split}.parquet")


if __name__ == "__main__":
    main()
