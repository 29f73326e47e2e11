"""Tasks: generate a puzzle, verify an answer, demonstrate a solution. No torch."""

from __future__ import annotations

from asyncthink.tasks.countdown import Countdown, Puzzle
from asyncthink.tasks.script import Demonstration, Piece, Script

TASKS = {Countdown.name: Countdown}

__all__ = ["TASKS", "Countdown", "Demonstration", "Piece", "Puzzle", "Script", "task"]


def task(name: str) -> Countdown:
    """The task of this name; raises ValueError listing the known ones."""
    if name not in TASKS:
        raise ValueError(f"task: expected one of {sorted(TASKS)}, got {name!r}")
    return TASKS[name]()
