"""Competition mathematics from a local file: AMC-23, AIME-24, DeepScaleR and whatever shares their fields.

An answer is graded by math-verify (extra ``train``), which compares what two texts mean: ``1/2``, ``0.5`` and
``\\frac12`` are equal.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from math import isnan
from pathlib import Path

from asyncthink.tasks.data import Record, Shelf, field_of, read_records
from asyncthink.tasks.script import Demonstration

MOST_CHARACTERS = 1000  # of an answer: longer ones are no answers, and parsing them could take minutes

_DELIMITER = re.compile(r"\$|\\\(|\\\[|\\boxed")
_CURRENCY = re.compile(r"(?:\bUS)?\\\$|[€£¥₹]")
#: Markdown's **bold**, *italic* and `code`, whose marks touch no letter or digit outside: 2**3 and a_1 are arithmetic.
_EMPHASIS = re.compile(r"(?<![\w)\]}])(\*\*|__|\*|_|`)(?=\S)(.+?)(?<=\S)\1(?![\w(\[{])")
#: Words with numbers among them and nothing else, which math-verify reads well without delimiters.
_PROSE = re.compile(r"(?:[A-Za-z]+[.,:;!?]*|[-+]?\d[\d,]*(?:\.\d+)?(?:/\d+)?%?[.,:;!?]*)(?:\s+|$)")
_FORMULA_WORDS = re.compile(
    r"\b(?:and|or|sqrt|sin|cos|tan|cot|sec|csc|log|exp|mod|gcd|lcm|max|min|inf|infinity)\b", re.I
)
_BOXED = re.compile(r"\\boxed\s*\{")


@dataclass(frozen=True, slots=True)
class Problem:
    """``question`` as in the file; ``answer`` as LaTeX or plain text."""

    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Math:
    """The task: take a problem from a file, write its question, grade an answer. There are no demonstrations."""

    name: str
    problems: Shelf[Problem]
    asked: int = 1

    @classmethod
    def load(cls, path: Path | str, test: bool = False) -> Math:
        """The problems of a ``.jsonl``, ``.json`` or ``.parquet`` file; a tenth is held out, with ``test`` all are.

        Fields, in any case: ``problem`` or ``question``, and ``answer`` or, without such a field, a ``solution`` whose
        last ``\\boxed{...}`` is the answer. Records whose answer is empty are left out with a warning.

        Raises ValueError as :func:`.data.read_records` does, and for a record without these fields.
        """
        path = Path(path)
        found = [_problem(r, f"{path}, record {number}") for number, r in enumerate(read_records(path), 1)]
        problems = [problem for problem in found if problem.answer]
        if len(problems) < len(found):
            warnings.warn(f"{path}: {len(found) - len(problems)} of {len(found)} records have no answer", stacklevel=2)
        shelf = Shelf.fill(path, problems, lambda problem: f"math {problem.question}", test)
        return cls(f"math{'-test' if test else ''}:{path}", shelf)

    def sample(self, seed: int, held_out: bool = False) -> Problem:
        """Problem number ``seed`` of its side, starting over after the last."""
        return self.problems.pick(seed, held_out)

    def prompt(self, puzzle: Problem) -> str:
        """The question as it stands in the file."""
        return puzzle.question

    def verify(self, puzzle: Problem, answer: str | None) -> float:
        """1.0 for an answer that means what the problem's does, else 0.0.

        The same text is right. Else what stands in ``\\boxed{...}`` counts, several boxes being several values, else
        what stands between dollars, else the number among words ("18 dollars", the last of several), else the whole
        text. Signs of currency and Markdown's emphasis mean nothing. Beyond 1000 characters, or 5 seconds to read or
        to compare, another text is wrong. Raises ImportError without math-verify, ValueError outside the main thread
        (the time limit is a signal).

        >>> price = Problem("What does it cost?", r"\\$18.90")
        >>> Math("math", None).verify(price, "**18.90 dollars**")                             # doctest: +SKIP
        1.0
        """
        if not answer:
            return 0.0
        try:
            from math_verify import parse, verify
        except ImportError as error:
            raise ImportError('grading needs math-verify: pip install "asyncthink-kernels[train]"') from error
        if answer == puzzle.answer:
            return 1.0
        if len(answer) > MOST_CHARACTERS:
            return 0.0
        right, given = _plain(puzzle.answer), _plain(answer)
        if right == given:
            return float(bool(given))
        return float(verify(parse(_delimited(right)), parse(_delimited(given))))

    def demonstrate(
        self, puzzle: Problem, seed: int, mode: str = "asyncthink", context: str = "shared", pool: int = 4
    ) -> Demonstration:
        """Always raises ValueError: a model learns the protocol on another task."""
        raise ValueError(f"task: {self.name} has no demonstrations")


def _problem(record: Record, where: str) -> Problem:
    question = field_of(record, ("problem", "question"), where)
    answer = field_of(record, ("answer", "solution"), where)
    if not isinstance(question, str) or not question.strip():
        raise ValueError(f"data: {where}: expected a question as text, got {question!r:.80}")
    if "answer" not in map(str.lower, record):
        answer = last_boxed(str(answer))
    if isinstance(answer, bool) or not isinstance(answer, str | int | float | None):
        raise ValueError(f"data: {where}: expected an answer as text or number, got {answer!r:.80}")
    if isinstance(answer, float):
        answer = None if isnan(answer) else int(answer) if answer.is_integer() else answer
    return Problem(question.strip(), "" if answer is None else str(answer).strip())


def last_boxed(text: str) -> str:
    """The inside of the last ``\\boxed{...}``, braces matched; empty where there is none.

    >>> last_boxed(r"so \\boxed{\\frac{1}{2}}.")
    '\\\\frac{1}{2}'
    """
    depth, begin = 1, max((match.end() for match in _BOXED.finditer(text)), default=len(text))
    for end in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if not depth:
            return text[begin:end]
    return ""


def _plain(text: str) -> str:
    """The text without signs of currency and emphasis, spaces as one, a typographic minus as the ASCII one.

    A single dollar that closes nothing is a sign of currency too.
    """
    text = _CURRENCY.sub("", text.replace("\N{MINUS SIGN}", "-"))
    if text.count("$") == 1:
        text = re.sub(r"(?:\bUS)?\$", "", text)
    while (bare := _EMPHASIS.sub(r"\2", text)) != text:
        text = bare
    return " ".join(text.split())


def _delimited(text: str) -> str:
    """The text as math-verify should read it: formulas between dollars, prose as it is."""
    return text if _DELIMITER.search(text) or _is_prose(text) else f"${text}$"


def _is_prose(text: str) -> bool:
    """Whether a number stands among words. Several values ("27 or 28") and functions ("log 2") are formulas."""
    worded = re.search(r"[A-Za-z]{3}", text) and not _FORMULA_WORDS.search(text)
    return bool(worded and re.search(r"\d", text) and not _PROSE.sub("", text))
