"""Expressions: text that is read back, keys equal for equal solutions, and the solver that counts them."""

from __future__ import annotations

import itertools
import random
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncthink.tasks.countdown import solutions
from asyncthink.tasks.expressions import Expression, combine, number, parse

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


@settings(deadline=None)
@given(TREES)
def test_a_written_expression_is_read_back(tree: Tree) -> None:
    if divides_by_zero(tree):
        with pytest.raises(ValueError, match="divides by zero"):
            parse(written(tree))
        return
    read = parse(written(tree))
    assert read == expression(tree)
    assert read.value == value(tree)


@settings(deadline=None)
@given(TREES, st.integers(0, 2**32))
def test_swapping_and_regrouping_keep_key_and_value(tree: Tree, seed: int) -> None:
    other = rearranged(tree, random.Random(seed))
    if divides_by_zero(tree) or divides_by_zero(other):
        return
    assert expression(other).key == expression(tree).key
    assert value(other) == value(tree)


@settings(deadline=None)
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
