"""Tasks of one's own: an object in Python, ``module:name`` on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from asyncthink.tasks import TASKS, Sudoku, task, task_names, tasks
from toy_task import Counting


def test_a_task_is_an_object_a_name_or_a_place() -> None:
    mine = Counting()
    assert task(mine) is mine
    assert task("toy_task:Counting") == mine
    assert tasks([mine, "sudoku-4"]) == [mine, TASKS["sudoku-4"]]
    assert tasks(mine) == [mine]
    assert tasks("toy_task:Counting,sudoku-4") == [mine, TASKS["sudoku-4"]]
    assert (task_names(mine), task_names("a,b"), task_names([mine, "a"])) == ("counting", "a,b", "counting,a")


def test_a_module_in_the_current_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_task_file.py").write_text("from asyncthink.tasks import Sudoku\nMINE = Sudoku('mine')\n")
    monkeypatch.chdir(tmp_path)
    assert task("own_task_file:MINE") == Sudoku("mine")


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match=r"task: expected one of countdown, .*, MODULE:NAME, got 'countdwn'"):
        task("countdwn")
    with pytest.raises(ValueError, match="task: there is no module 'nowhere' to import 'nowhere:X' from"):
        task("nowhere:X")
    with pytest.raises(ValueError, match="task: expected 'Such' in the module toy_task, which lacks it"):
        task("toy_task:Such")
    with pytest.raises(ValueError, match=r"task: expected an object with name, .*; toy_task:LARGEST lacks name, asked"):
        task("toy_task:LARGEST")
    with pytest.raises(ValueError, match="float lacks name, asked, sample, prompt, verify, demonstrate"):
        task(1.5)  # type: ignore[arg-type]
