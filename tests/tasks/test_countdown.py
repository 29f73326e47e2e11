"""Countdown: puzzles, the verifier, and what demonstrations say."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncthink.protocol.parser import Parser
from asyncthink.protocol.tags import Action, Answer, Return
from asyncthink.tasks import TASKS, Countdown, Puzzle, Script, task
from asyncthink.tasks.countdown import ASKED, is_held_out, solutions
from asyncthink.tasks.expressions import parse
from asyncthink.tasks.search import find_all, search_start
from asyncthink.tasks.split import HELD_OUT_SHARE


@pytest.mark.parametrize("held_out", [False, True])
def test_demonstrated_search_is_exhaustive_and_meets_each_solution_once(held_out: bool) -> None:
    for seed in range(40):
        puzzle = Countdown().sample(seed, held_out)
        found = [parse(text) for text in find_all(puzzle.numbers, puzzle.target)]
        assert all(solution.value == puzzle.target for solution in found)
        assert sorted(solution.key for solution in found) == sorted(solutions(puzzle.numbers, puzzle.target, 3))
        assert len(found) >= ASKED


def test_held_out_puzzles_and_training_puzzles_never_meet() -> None:
    training = {Countdown().sample(seed) for seed in range(400)}
    held_out = {Countdown().sample(seed, held_out=True) for seed in range(400)}
    assert not training & held_out
    assert not any(map(is_held_out, training))
    assert all(map(is_held_out, held_out))
    everything = [Puzzle(n, t) for n in itertools.combinations(range(2, 14), 7) for t in (20, 40, 60)]
    assert sum(map(is_held_out, everything)) / len(everything) == pytest.approx(1 / HELD_OUT_SHARE, abs=0.02)


PUZZLE = Puzzle((2, 3, 4, 5, 6, 7, 8), 24)


@pytest.mark.parametrize(
    ("answer", "share"),
    [
        (None, 0.0),
        ("", 0.0),
        ("no idea", 0.0),
        ("3*8", 0.25),
        ("3*8, 8*3", 0.25),
        ("3*8 = 24\n4*6=24\n2*5+6+8\n7+8+4+5", 1.0),
        (" #1:3*8 #2:4*6 #3:2*5+6+8 #4:7+8+4+5", 1.0),
        ("3×8; 4*6", 0.5),
        ("3*8=25", 0.0),
        ("4*6, 6*4, 6*4, 6*4, 3*8", 0.25),  # the fifth guess does not count
        ("9+15, 12*2, 2*2*6, 3*8", 0.25),  # numbers that are not there, or used twice
        ("3*8" + "(" * 5000, 0.0),
    ],
)
def test_verifier(answer: str | None, share: float) -> None:
    assert Countdown().verify(PUZZLE, answer) == share


@settings(deadline=None)
@given(st.text(max_size=80))
def test_verifier_grades_any_text(answer: str) -> None:
    assert Countdown().verify(PUZZLE, answer) in {0.0, 0.25, 0.5, 0.75, 1.0}


def test_the_question_holds_the_puzzle() -> None:
    puzzle = Countdown().sample(3)
    assert Countdown().parse_prompt(Countdown().prompt(puzzle)) == puzzle
    with pytest.raises(ValueError, match="question"):
        Countdown().parse_prompt("what is love")


EVEN = Countdown("even", 8, 6, even=True)
COUNTDOWNS = [*(TASKS[name] for name in ("countdown", "countdown-8", "countdown-8x4")), EVEN]


def searched(script: Script) -> list[int]:
    """The starts of the search lines that an agent wrote itself, in order, each once."""
    said = "".join(piece.text for piece in script.pieces if piece.said)
    return list(dict.fromkeys(int(start) for start in re.findall(r"^(\d+)\+", said, re.MULTILINE)))


def found_from(puzzle: Puzzle, starts: Sequence[int]) -> list[str]:
    steps = [step for start in starts for step in search_start(puzzle.numbers, puzzle.target, start)]
    return [step.solution for step in steps if step.solution]


def read(script: Script) -> list[Action]:
    """What the real parser makes of a script."""
    parser, actions = Parser(script.role), []
    for piece in script.pieces:
        if piece.said:
            actions += parser.feed(piece.text)
        else:
            parser.insert(piece.text)
    return actions + parser.close()


@pytest.mark.parametrize("countdown", COUNTDOWNS, ids=lambda task: task.name)
def test_returns_and_answers_hold_exactly_what_was_found(countdown: Countdown) -> None:
    """Every agent's findings are the solutions of the starts it was given; the answer lists all that came together."""
    for seed in range(60):
        puzzle = countdown.sample(seed)
        organizer, *workers = countdown.demonstrate(puzzle, seed).scripts
        covered = searched(organizer)
        for worker in workers:
            starts = [int(start) for start in worker.subquery.removeprefix(" start:").split(",")]
            assert searched(worker) == starts
            labelled = "".join(f" {c}:{s}" for c, s in zip("abcdefghi", found_from(puzzle, starts), strict=False))
            assert read(worker) == [Return(labelled or "none")]
            assert labelled in worker.text
            covered += starts
        assert sorted(covered) == list(puzzle.numbers[:-1])
        answer = read(organizer)[-1]
        assert isinstance(answer, Answer)
        found = found_from(puzzle, covered)
        assert set(countdown.correct(puzzle, answer.text)) <= set(found)
        assert countdown.verify(puzzle, answer.text) == 1


@pytest.mark.parametrize("countdown", COUNTDOWNS, ids=lambda task: task.name)
def test_one_agent_alone_searches_what_it_has_room_for(countdown: Countdown) -> None:
    """Different starts in random order within ``pairs_alone``; the search ends at the fourth solution."""
    counts = set()
    for seed in range(150):
        puzzle = countdown.sample(seed)
        (solo,) = countdown.demonstrate(puzzle, seed, "sequential").scripts
        starts = searched(solo)
        places = [puzzle.numbers.index(start) for start in starts]
        assert sum(len(puzzle.numbers) - 1 - place for place in places) <= countdown.pairs_alone
        found = found_from(puzzle, starts)[:ASKED]
        listed = "".join(f" #{k}:{solution}" for k, solution in enumerate(found, 1))
        assert read(solo) == [Answer(listed or "none")]
        if len(found) == ASKED:
            assert solo.text.endswith(f"{found[-1]}\n<ANSWER>{listed}</ANSWER>")
        counts.add(len(found))
    assert counts >= {0, 1, 2, 3}
    assert (
        countdown.demonstrate(puzzle, 7, "parallel").scripts == countdown.demonstrate(puzzle, 7, "sequential").scripts
    )


def pairs(puzzle: Puzzle, starts: Sequence[int]) -> int:
    return sum(len(puzzle.numbers) - 1 - puzzle.numbers.index(start) for start in starts)


@pytest.mark.parametrize("pool", [2, 3, 4, 9])
def test_an_even_search_keeps_all_agents_busy_alike(pool: int) -> None:
    for seed in range(20):
        puzzle = EVEN.sample(seed)
        scripts = EVEN.demonstrate(puzzle, seed, pool=pool).scripts
        kinds = [type(action).__name__ for action in read(scripts[0])]
        workers = len(scripts) - 1
        assert kinds == ["Fork"] * workers + ["Join"] * workers + ["Answer"] and workers <= pool - 1
        searched_by = [pairs(puzzle, searched(script)) for script in scripts]
        assert sum(searched_by) == 28
        assert max(searched_by) == max(math.ceil(28 / pool), 7)  # seven pairs have the same start
        alone = pairs(puzzle, searched(EVEN.demonstrate(puzzle, seed, "sequential").scripts[0]))
        assert alone > 8  # of 12: one that had stopped by chance would have fewer
    assert EVEN.demonstrate(puzzle, 1) == EVEN.demonstrate(puzzle, 1)


def test_the_search_ends_at_the_fourth_solution() -> None:
    countdown = Countdown(pairs_alone=99)
    puzzle = Puzzle((2, 3, 4, 5, 6, 7, 8), 24)
    assert len(find_all(puzzle.numbers, puzzle.target)) > ASKED
    answers = set()
    for seed in range(20):
        (solo,) = countdown.demonstrate(puzzle, seed, "sequential").scripts
        (answer,) = read(solo)
        if countdown.verify(puzzle, answer.text) == 1.0:
            last = answer.text.rpartition(":")[2]
            assert solo.text.endswith(f" d:{last}\n<ANSWER>{answer.text}</ANSWER>")
            answers.add(answer.text)
    assert len(answers) > 5


def test_a_part_is_what_the_question_names() -> None:
    for seed in range(30):
        puzzle = COUNTDOWNS[1].sample(seed)
        part = COUNTDOWNS[1].demonstrate(puzzle, seed, "part")
        question, _, named = part.question.partition(" start:")
        assert COUNTDOWNS[1].parse_prompt(question) == puzzle
        starts = [int(start) for start in named.split(",")]
        assert searched(part.scripts[0]) == starts[: len(searched(part.scripts[0]))]
        found = found_from(puzzle, starts)[:ASKED]
        assert COUNTDOWNS[1].verify(puzzle, read(part.scripts[0])[-1].text) == len(found) / ASKED


def test_isolated_workers_are_told_the_question() -> None:
    puzzle = Countdown().sample(5)
    shared, isolated = (
        Countdown().demonstrate(puzzle, 5, context=context).scripts for context in ("shared", "isolated")
    )
    assert len(shared) > 1
    assert [Countdown().prompt(puzzle) + worker.subquery for worker in shared[1:]] == [w.subquery for w in isolated[1:]]
    assert [worker.text for worker in shared[1:]] == [worker.text for worker in isolated[1:]]


def test_a_union_keeps_each_right_expression_once() -> None:
    united = Countdown().union(PUZZLE, ["3*8, 9+15", "8*3\n4*6", " #1:2*5+6+8", "none", "7+8+4+5, 3*2*4"])
    assert united == " #1:3*8 #2:4*6 #3:2*5+6+8 #4:7+8+4+5"
    assert Countdown().verify(PUZZLE, united) == 1.0
    assert Countdown().union(PUZZLE, ["9+15", ""]) == ""


def test_an_unknown_task_is_named() -> None:
    with pytest.raises(ValueError, match=r"task: expected one of countdown, countdown-8, .*math:PATH.*, got 'chess'"):
        task("chess")
