"""Competition mathematics from a local file: AMC-23, AIME-24, DeepScaleR and other files with the same fields.

Answers are graded by math-verify (extra ``train``), which compares their mathematical meaning: ``1/2``, ``0.5`` and
``\\frac12`` are equal.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan
from pathlib import Path

from asyncthink.tasks.data import Record, Split, field_of, read_records
from asyncthink.tasks.script import Demonstration

MOST_CHARACTERS = 1000  # of an answer; parsing a longer text could take minutes

_DELIMITER = re.compile(r"\$|\\\(|\\\[|\\boxed")
_CURRENCY = re.compile(r"(?:\bUS)?\\\$|[€£¥₹]")
#: Markdown's **bold**, *italic* and `code`. No letter or digit may touch the marks from outside: 2**3 is arithmetic.
_EMPHASIS = re.compile(r"(?<![\w)\]}])(\*\*|__|\*|_|`)(?=\S)(.+?)(?<=\S)\1(?![\w(\[{])")
#: Only words and numbers: math-verify parses such text without delimiters.
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
    """The task: take a problem from a file, write its question, grade an answer. It has no demonstrations."""

    name: str
    problems: Split[Problem]
    asked: int = 1

    @classmethod
    def load(cls, path: Path | str, test: bool = False) -> Math:
        """The problems of a ``.jsonl``, ``.json`` or ``.parquet`` file; a tenth is held out, with ``test`` all are.

        Fields, in upper or lower case: ``problem`` or ``question``; and ``answer``, or else a ``solution`` whose last
        ``\\boxed{...}`` is the answer. Records with an empty answer are left out with a warning.

        Raises ValueError as :func:`.data.read_records` does, and for a record without these fields.
        """
        return cls.of(f"math{'-test' if test else ''}:{path}", Path(path), read_records(Path(path)), test)

    @classmethod
    def of(cls, name: str, path: Path, records: Sequence[Record], test: bool) -> Math:
        """As :meth:`load`, with records that were read from ``path``."""
        problems = [_problem(record, f"{path}, record {n}") for n, record in enumerate(records, 1)]
        answered = [problem for problem in problems if problem.answer]
        if unanswered := len(problems) - len(answered):
            warnings.warn(f"{path}: {unanswered} of {len(problems)} records have no answer", stacklevel=3)
        return cls(name, Split.of(path, answered, lambda problem: f"math {problem.question}", test))

    def sample(self, seed: int, held_out: bool = False) -> Problem:
        """Problem number ``seed`` of the held-out or the training problems, modulo their number."""
        return self.problems.pick(seed, held_out)

    def prompt(self, puzzle: Problem) -> str:
        """The question as it is in the file."""
        return puzzle.question

    def verify(self, puzzle: Problem, answer: str | None) -> float:
        """1.0 for an answer with the meaning of the problem's answer, else 0.0.

        Equal texts are right. Otherwise the compared value is, in this order: the contents of ``\\boxed{...}`` (several
        boxes are several values); the text between dollar signs; the last number among words ("18 dollars"); the whole
        text. Currency signs and Markdown emphasis are ignored. An answer of more than 1000 characters, or one that
        takes more than 5 seconds to parse or to compare, is wrong. Raises ImportError without math-verify, ValueError
        outside the main thread (the time limit is a signal).

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
        expected, given = _plain(puzzle.answer), _plain(answer)
        if expected == given:
            return float(bool(given))
        return float(verify(parse(_delimited(expected)), parse(_delimited(given))))

    def demonstrate(
        self,
        puzzle: Problem,
        seed: int,
        mode: str = "asyncthink",
        context: str = "shared",
        pool: int = 4,
        depth: int = 1,
    ) -> Demonstration:
        """Always raises ValueError: this task has no demonstrations."""
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
    """The contents of the last ``\\boxed{...}``, up to the matching brace; empty if there is none.

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
    """The text without currency signs and emphasis, with single spaces and ASCII minus signs.

    A single dollar sign is a currency sign too.
    """
    text = _CURRENCY.sub("", text.replace("\N{MINUS SIGN}", "-"))
    if text.count("$") == 1:
        text = re.sub(r"(?:\bUS)?\$", "", text)
    while (bare := _EMPHASIS.sub(r"\2", text)) != text:
        text = bare
    return " ".join(text.split())


def _delimited(text: str) -> str:
    """The text for math-verify's parser: formulas between dollar signs, prose unchanged."""
    return text if _DELIMITER.search(text) or _is_prose(text) else f"${text}$"


def _is_prose(text: str) -> bool:
    """Whether the text is words with a number. Several values ("27 or 28") and functions ("log 2") are formulas."""
    worded = re.search(r"[A-Za-z]{3}", text) and not _FORMULA_WORDS.search(text)
    return bool(worded and re.search(r"\d", text) and not _PROSE.sub("", text))
