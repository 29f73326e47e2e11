"""Arithmetic expressions as text: a parser without ``eval``, values, and a key that is equal for equal solutions.

Grammar: ``sum := product (("+" | "-") product)*``, ``product := atom (("*" | "/") atom)*``,
``atom := integer | "(" sum ")"``. There is no unary sign. Arithmetic is exact (:class:`fractions.Fraction`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

_TOKEN = re.compile(r"\s*([0-9]{1,9}|[-+*/()])")
_TRANSLATE = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-"})
_MAX_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class Expression:
    """A parsed expression: its exact ``value``, the integers in it (``numbers``), and its ``key``.

    Two expressions have the same key exactly when one becomes the other by commuting or re-associating sums and
    products; subtraction is addition of a negative, division multiplication by an inverse: ``a-(b-c)``, ``c+a-b`` and
    ``(a-b)+c`` share a key. Products are not distributed over sums: ``a*(b+c)`` and ``a*b+a*c`` differ.
    """

    value: Fraction
    numbers: tuple[int, ...]
    key: str
    sums: tuple[tuple[str, str], ...]  # ("+" or "-", key) of each term of the flattened sum
    factors: tuple[tuple[str, str], ...]  # ("*" or "/", key) of each factor of the flattened product


def number(value: int) -> Expression:
    key = str(value)
    return Expression(Fraction(value), (value,), key, (("+", key),), (("*", key),))


def combine(left: Expression, operator: str, right: Expression) -> Expression:
    """``left operator right``. Raises ZeroDivisionError for a division by zero."""
    numbers = left.numbers + right.numbers
    if operator in "+-":
        value = left.value + right.value if operator == "+" else left.value - right.value
        sums = tuple(sorted(left.sums + _signed(right.sums, operator, "+", "-")))
        key = "(" + "".join(sign + term for sign, term in sums) + ")"
        return Expression(value, numbers, key, sums, (("*", key),))
    value = left.value * right.value if operator == "*" else left.value / right.value
    factors = tuple(sorted(left.factors + _signed(right.factors, operator, "*", "/")))
    key = "(" + "".join(sign + factor for sign, factor in factors) + ")"
    return Expression(value, numbers, key, (("+", key),), factors)


def _signed(parts: tuple[tuple[str, str], ...], operator: str, keep: str, turn: str) -> tuple[tuple[str, str], ...]:
    if operator == keep:
        return parts
    return tuple((turn if sign == keep else keep, part) for sign, part in parts)


def parse(text: str) -> Expression:
    """Parse one expression.

    Raises ValueError for text outside the grammar above, for a division by zero, and for more than 200 characters.

    >>> parse("(5 + 7) * 2").value
    Fraction(24, 1)
    >>> parse("9-(5-3)").key == parse("3+9-5").key
    True
    """
    if len(text) > _MAX_CHARACTERS:
        raise ValueError(f"expression: expected at most {_MAX_CHARACTERS} characters, got {len(text)}")
    tokens = _tokens(text.translate(_TRANSLATE))
    try:
        expression, end = _sum(tokens, 0)
    except ZeroDivisionError:
        raise ValueError(f"expression divides by zero: {text!r}") from None
    if end != len(tokens):
        raise ValueError(f"expression: unexpected {tokens[end]!r} in {text!r}")
    return expression


def _tokens(text: str) -> list[str]:
    tokens, start, text = [], 0, text.rstrip()
    while start < len(text):
        match = _TOKEN.match(text, start)
        if match is None:
            raise ValueError(f"expression: unexpected {text[start:].strip()[:1]!r} in {text!r}")
        tokens.append(match.group(1))
        start = match.end()
    return tokens


# Each parser takes the index of its first token and returns the expression with the index after its last token.


def _sum(tokens: list[str], start: int) -> tuple[Expression, int]:
    left, end = _product(tokens, start)
    while end < len(tokens) and tokens[end] in "+-":
        operator = tokens[end]
        right, end = _product(tokens, end + 1)
        left = combine(left, operator, right)
    return left, end


def _product(tokens: list[str], start: int) -> tuple[Expression, int]:
    left, end = _atom(tokens, start)
    while end < len(tokens) and tokens[end] in "*/":
        operator = tokens[end]
        right, end = _atom(tokens, end + 1)
        left = combine(left, operator, right)
    return left, end


def _atom(tokens: list[str], start: int) -> tuple[Expression, int]:
    if start >= len(tokens):
        raise ValueError("expression ends too early")
    if tokens[start].isdigit():
        return number(int(tokens[start])), start + 1
    if tokens[start] != "(":
        raise ValueError(f"expression: expected a number or '(', got {tokens[start]!r}")
    inner, end = _sum(tokens, start + 1)
    if end >= len(tokens) or tokens[end] != ")":
        raise ValueError("expression: missing ')'")
    return inner, end + 1
