"""Countdown: expressions and their keys, the exact solver, the verifier, and what demonstrations say."""

from __future__ import annotations

import itertools
import random
import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncthink.protocol import Fork, Parser
from asyncthink.protocol import Join as JoinAction
from asyncthink.tasks import Countdown, Puzzle, task
from asyncthink.tasks.countdown import ASKED, HELD_OUT_SHARE, is_held_out, solutions
from asyncthink.tasks.expressions import Expression, combine, number, parse
from asyncthink.tasks.search import find_all

Tree = int | tuple["Tree", str, "Tree"]
TREES: st.SearchStrategy[Tree] = st.recursive(
    st.integers(1, 20), lambda inner: st.tuples(inner, st.sampled_from("+-*/"), inner), max_leaves=6
)


def written(tree: Tree) -> str:
    return str(tree) if isinstance(tree, int) else f"({written(tree[0])}{tree[1]}{written(tree[2])})"


def value(tree: Tree) -> Fraction:
    if isinstance(tree, int):
        return Fraction(tree)
    left, right = value(tree[0]), value(tree[2])
    return {"+": left + right, "-": left - right, "*": left * right}[tree[1]] if tree[1] != "/" else left / right


def expression(tree: Tree) -> Expression:
    return number(tree) if isinstance(tree, int) else combine(expression(tree[0]), tree[1], expression(tree[2]))


def rearranged(tree: Tree, rng: random.Random) -> Tree:
    """The same expression with operands swapped and groups moved at random places."""
    if isinstance(tree, int):
        return tree
    left, operator, right = rearranged(tree[0], rng), tree[1], rearranged(tree[2], rng)
    same = "+-" if operator in "+-" else "*/"
    plain = same[0]
    if operator == plain and rng.random() < 0.5:
        left, right = right, left
    if isinstance(left, tuple) and left[1] in same and rng.random() < 0.7:
        a, first, b = left  # (a . b) . right -> (a . right) . b
        return ((a, operator, right), first, b)
    if isinstance(right, tuple) and right[1] in same and rng.random() < 0.7:
        b, inner, c = right  # left . (b . c) -> (left . b) . c, where a turned outer sign turns the inner one
        turned = inner if operator == plain else same[1 - same.index(inner)]
        return ((left, operator, b), turned, c)
    return (left, operator, right)


def divides_by_zero(tree: Tree) -> bool:
    try:
        value(tree)
    except ZeroDivisionError:
        return True
    return False


@given(TREES)
def test_a_written_expression_is_read_back(tree: Tree) -> None:
    if divides_by_zero(tree):
        with pytest.raises(ValueError, match="divides by zero"):
            parse(written(tree))
        return
    read = parse(written(tree))
    assert read == expression(tree)
    assert read.value == value(tree)


@given(TREES, st.integers(0, 2**32))
def test_swapping_and_regrouping_keep_key_and_value(tree: Tree, seed: int) -> None:
    other = rearranged(tree, random.Random(seed))
    if divides_by_zero(tree) or divides_by_zero(other):
        return
    assert expression(other).key == expression(tree).key
    assert value(other) == value(tree)


@given(TREES, TREES)
def test_one_key_means_one_value_and_the_same_numbers(one: Tree, other: Tree) -> None:
    if divides_by_zero(one) or divides_by_zero(other) or expression(one).key != expression(other).key:
        return
    assert value(one) == value(other)
    assert sorted(expression(one).numbers) == sorted(expression(other).numbers)


def test_keys_by_brute_force_over_values() -> None:
    """Expressions of 3 numbers fall into as many keys as distinct rational functions, checked at random points."""
    points = [tuple(random.Random(k).sample(range(2, 10**6), 3)) for k in range(4)]
    keys: dict[str, tuple[Fraction, ...]] = {}
    for order in itertools.permutations(range(3)):
        for first, second in itertools.product("+-*/", repeat=2):
            a, b, c = order
            for shape in (((a, first, b), second, c), (a, first, (b, second, c))):
                values = tuple(value(_filled(shape, point)) for point in points)
                assert keys.setdefault(expression(_filled(shape, (101, 103, 107))).key, values) == values
    assert len(set(keys.values())) == len(keys)


def _filled(shape: Tree, point: tuple[int, ...]) -> Tree:
    return point[shape] if isinstance(shape, int) else (_filled(shape[0], point), shape[1], _filled(shape[2], point))


@pytest.mark.parametrize(("one", "other"), [("3+4*5", "5*4+3"), ("9-(5-3)", "3+9-5"), ("8/(4/2)", "2*8/4")])
def test_same_key(one: str, other: str) -> None:
    assert parse(one).key == parse(other).key


@pytest.mark.parametrize(("one", "other"), [("2*(3+4)", "2*3+2*4"), ("(9-5)*3", "(5-9)*3"), ("2+2", "2*2")])
def test_different_keys(one: str, other: str) -> None:
    assert parse(one).key != parse(other).key


@pytest.mark.parametrize(
    "text", ["", "3+", "-3", "3 4", "(3", "3)", "3**2", "x", "__import__('os')", "1/0", "3/(2-2)", "1" * 201, "٣+1"]
)
def test_not_an_expression(text: str) -> None:
    with pytest.raises(ValueError, match="expression"):
        parse(text)


def test_deep_brackets_end_cleanly() -> None:
    assert parse("(" * 99 + "7" + ")" * 99).value == 7


def test_solver_finds_what_brute_force_finds() -> None:
    numbers, target = (2, 3, 5), 11
    trees: list[Tree] = list(numbers)
    for a, b in itertools.permutations(numbers, 2):
        trees += [(a, op, b) for op in "+-*/"]
    for a, b, c in itertools.permutations(numbers):
        for x, y in itertools.product("+-*/", repeat=2):
            trees += [((a, x, b), y, c), (a, x, (b, y, c))]
    expected = {expression(t).key for t in trees if not divides_by_zero(t) and value(t) == target}
    assert set(solutions(numbers, target, 3)) == expected
    assert expected


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


@given(st.text(max_size=80))
def test_verifier_grades_any_text(answer: str) -> None:
    assert Countdown().verify(PUZZLE, answer) in {0.0, 0.25, 0.5, 0.75, 1.0}


def test_the_question_holds_the_puzzle() -> None:
    puzzle = Countdown().sample(3)
    assert Countdown().parse_prompt(Countdown().prompt(puzzle)) == puzzle
    with pytest.raises(ValueError, match="question"):
        Countdown().parse_prompt("what is love")


@pytest.mark.parametrize("pool", [2, 3, 4, 8])
def test_demonstrations_keep_the_protocol(pool: int) -> None:
    """Read by the real parser: tags act, at most pool - 1 workers are un-joined, the answer is right."""
    countdown = Countdown()
    for seed in range(40):
        puzzle = countdown.sample(seed)
        organizer, *workers = countdown.demonstrate(puzzle, seed, pool=pool).scripts
        parser, live, actions = Parser("organizer"), 0, []
        for place, piece in enumerate(organizer.pieces):
            if not piece.said:
                parser.insert(piece.text)
                continue
            for action in parser.feed(piece.text):
                actions.append(action)
                live += isinstance(action, Fork) - isinstance(action, JoinAction)
                assert live <= pool - 1
                if isinstance(action, Fork):
                    worker = workers[action.index - 1]
                    assert (worker.fork_at, worker.subquery) == (place + 1, action.subquery)
                if isinstance(action, JoinAction):
                    returned = Parser("worker").feed(workers[action.index - 1].text)[-1].text
                    assert organizer.pieces[place + 1].text == f"{returned}</JOIN-{action.index}>"
        assert parser.close() == []
        assert countdown.verify(puzzle, actions[-1].text) == 1.0


def test_topologies_differ_and_repeat_by_seed() -> None:
    countdown = Countdown()
    puzzle = countdown.sample(0)
    texts = [countdown.demonstrate(puzzle, seed).scripts[0].text for seed in range(60)]
    assert texts == [countdown.demonstrate(puzzle, seed).scripts[0].text for seed in range(60)]
    shapes = {tuple(re.findall(r"<(FORK|JOIN)", text)) for text in texts}
    assert len(shapes) > 8
    assert {len(re.findall("<FORK", text)) for text in texts} >= {2, 3, 4, 5}


def test_one_agent_alone_stops_at_the_fourth_solution() -> None:
    puzzle = Countdown().sample(0)
    (solo,) = Countdown().demonstrate(puzzle, 0, "sequential").scripts
    assert Countdown().verify(puzzle, solo.text.partition("<ANSWER>")[2].partition("</ANSWER>")[0]) == 1.0
    assert " #4:" in solo.text
    assert " #5:" not in solo.text


def test_bad_options_are_named() -> None:
    puzzle = Countdown().sample(0)
    with pytest.raises(ValueError, match="mode: expected 'asyncthink' or 'sequential', got 'parallel'"):
        Countdown().demonstrate(puzzle, 0, "parallel")
    with pytest.raises(ValueError, match="context"):
        Countdown().demonstrate(puzzle, 0, context="both")
    with pytest.raises(ValueError, match="pool"):
        Countdown().demonstrate(puzzle, 0, pool=1)
    with pytest.raises(ValueError, match="task: expected one of"):
        task("chess")
