"""One answer and one grade an episode, in every mode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from asyncthink.episode.records import Episode, Trace
from asyncthink.tasks import Countdown, Puzzle, task
from asyncthink.tasks.grading import final_answer, grade, how_to_aggregate

COUNTDOWN = Countdown()
PUZZLE = Puzzle((2, 3, 4, 5, 6, 7, 8), 24)


def parallel(*answers: str | None) -> Episode:
    traces = [Trace(agent, "solo", returned=answer) for agent, answer in enumerate(answers)]
    return Episode("24 from 2 3 4 5 6 7 8", "parallel", pool=len(answers), traces=traces, answer="what a vote made")


def test_an_organizers_answer_is_the_answer() -> None:
    for mode in ("asyncthink", "sequential"):
        episode = Episode("q", mode, answer=" #1:3*8 #2:8*3 #3:4*6", traces=[Trace(0, "solo", returned="2*3*4")])
        assert final_answer(COUNTDOWN, PUZZLE, episode) == episode.answer
        assert grade(COUNTDOWN, PUZZLE, episode) == 0.5
    assert grade(COUNTDOWN, PUZZLE, Episode("q", "asyncthink")) == 0


def test_a_union_holds_what_is_right_in_any_trace_once() -> None:
    episode = parallel(" #1:8*3 #2:1+1 #3:9", None, "3*8, 4*6", "none", " #1:2*3*4 #2:2+6+8*2 #3:5+7+8+4")
    assert final_answer(COUNTDOWN, PUZZLE, episode) == " #1:8*3 #2:4*6 #3:2*3*4 #4:5+7+8+4"
    assert grade(COUNTDOWN, PUZZLE, episode) == 1.0
    assert grade(COUNTDOWN, PUZZLE, episode, "union") == 1.0
    assert grade(COUNTDOWN, PUZZLE, episode, "vote") == 0.25, "a tie: the earliest trace's answer"


def test_wrong_guesses_push_nothing_out_of_a_union_but_each_trace_has_four() -> None:
    assert grade(COUNTDOWN, PUZZLE, parallel("1, 2, 3, 4", "3*8")) == 0.25
    assert grade(COUNTDOWN, PUZZLE, parallel("1, 2, 3, 4, 3*8", "5")) == 0


def test_no_trace_answered() -> None:
    assert final_answer(COUNTDOWN, PUZZLE, parallel(None, None)) is None
    assert grade(COUNTDOWN, PUZZLE, parallel(None, None)) == 0


def test_tasks_without_a_union_vote() -> None:
    sudoku = task("sudoku-4")
    assert (how_to_aggregate(sudoku, None), how_to_aggregate(COUNTDOWN, None)) == ("vote", "union")
    assert final_answer(sudoku, sudoku.sample(0), parallel("a", "b", "b", None)) == "b"
    with pytest.raises(ValueError, match="aggregate: expected vote for sudoku-4, whose answers cannot be united"):
        grade(sudoku, sudoku.sample(0), parallel("a"), "union")
    with pytest.raises(ValueError, match="aggregate: expected one of vote, union, got 'best'"):
        grade(COUNTDOWN, PUZZLE, parallel("a"), "best")


@dataclass(frozen=True)
class Grader:
    """A task that gives back, or raises, what it was made with."""

    result: Any
    name: str = "odd"
    asked: int = 1

    def verify(self, puzzle: Any, answer: str | None) -> Any:
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result


def test_a_grader_that_fails_is_named_with_the_answer() -> None:
    asked = Episode("q", "sequential", answer="4 2")
    with pytest.raises(ValueError, match=r"task: odd cannot grade the answer '4 2': KeyError: 'x'"):
        grade(Grader(KeyError("x")), None, asked)
    with pytest.raises(ImportError, match="install it"):
        grade(Grader(ImportError("install it")), None, asked)
    for result in (None, "1.0", [1.0]):
        with pytest.raises(ValueError, match="task: expected a number from verify of odd, got"):
            grade(Grader(result), None, asked)
    for result in (True, 1, 1.0, np.float32(1)):
        share = grade(Grader(result), None, asked)
        assert (share, type(share)) == (1.0, float)
