"""Tasks from local files: fields as published data sets name them, the split, answers graded by what they mean."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncthink.tasks import ListedCountdown, Math, Puzzle, task
from asyncthink.tasks.data import Split, read_records
from asyncthink.tasks.math import MOST_CHARACTERS, Problem, last_boxed
from asyncthink.tasks.split import in_held_out_share

AMC_23 = {"id": 0, "question": "What is $9 \\cdot 3$?", "answer": 27.0, "url": "https://example.org/amc"}
AIME_24 = {"ID": "2024-I-1", "Problem": "Find $200+4$.", "Solution": "It is $204$.", "Answer": 204}
AIME_24_BOXED = {"id": 60, "problem": "Halve $1$.", "solution": "So \\boxed{2}, no: \\boxed{\\frac{1}{2}}.", "url": ""}
DEEPSCALER = {"problem": "Solve $x^2=12$, $x>0$.", "answer": "2\\sqrt{3}", "solution": "We see \\boxed{0}."}
RECORDS = [AMC_23, AIME_24, AIME_24_BOXED, DEEPSCALER]
COUNTDOWN = {
    "index": 7,
    "target": 24,
    "available_numbers": [8, 3, 4, 6, 5, 7, 2],
    "solutions": ["3*8", "4*6=24", "(5+7)*2"],
}


def as_lines(path: Path, records: list[Any]) -> Path:
    path.write_text("\n".join(json.dumps(record) for record in records) + "\n\n")
    return path


def as_array(path: Path, records: list[Any]) -> Path:
    path.write_text(json.dumps(records, indent=1))
    return path


def as_parquet(path: Path, records: list[Any]) -> Path:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)
    return path


WRITERS = {"jsonl": as_lines, "json": as_array, "parquet": as_parquet}


@pytest.mark.parametrize("ending", WRITERS)
def test_published_fields_are_read_from_every_kind_of_file(tmp_path: Path, ending: str) -> None:
    write: Callable[[Path, list[Any]], Path] = WRITERS[ending]
    answers = []
    for number, record in enumerate(RECORDS):
        path = write(tmp_path / f"{number}.{ending}", [record])
        known = task(f"math-test:{path}")
        assert (known.name, known.asked) == (f"math-test:{path}", 1)
        problem = known.sample(0, held_out=True)
        assert known.prompt(problem) == record.get("problem", record.get("question", record.get("Problem")))
        answers.append(problem.answer)
    assert answers == ["27", "204", "\\frac{1}{2}", "2\\sqrt{3}"]
    puzzle = task(f"countdown-test:{write(tmp_path / f'c.{ending}', [COUNTDOWN])}").sample(0, held_out=True)
    assert puzzle == Puzzle((2, 3, 4, 5, 6, 7, 8), 24)


@pytest.mark.parametrize(
    ("right", "answer", "share"),
    [
        ("27", "27", 1.0),
        ("27", "27.0", 1.0),
        ("27", " \\boxed{27} ", 1.0),
        ("27", "The answer is $27$.", 1.0),
        ("27", "so $26 + 1$ is \\boxed{27}", 1.0),
        ("27", "\\boxed{26}, \\boxed{27}", 0.0),
        ("27", "28", 0.0),
        ("27", "27, 28", 0.0),  # two guesses
        ("27", "27 or 28", 0.0),
        ("27", "none", 0.0),
        ("27", "$", 0.0),
        ("27", "", 0.0),
        ("27", None, 0.0),
        ("27", "27" + " " * MOST_CHARACTERS, 0.0),
        ("025", "25", 1.0),
        ("\\frac{1}{2}", "0.5", 1.0),
        ("\\frac{1}{2}", "1/2", 1.0),
        ("\\frac{1}{2}", "\\frac24", 1.0),
        ("\\frac{1}{2}", "2", 0.0),
        ("2\\sqrt{3}", "\\sqrt{12}", 1.0),
        ("$2\\sqrt{3}$", "2*sqrt(3)", 1.0),
        ("1,000", "1000", 1.0),
        ("(1,2)", "(1, 2)", 1.0),
        ("(1,2)", "(2, 1)", 0.0),
        # Signs of currency
        ("\\$18.90", "\\$18.90", 1.0),
        ("\\$18.90", "18.90", 1.0),
        ("\\$18.90", "18.9", 1.0),
        ("\\$18.90", "18.91", 0.0),
        ("18.90", "$\\$18.90$", 1.0),
        ("18.90", "\\boxed{\\$18.90}", 1.0),
        ("18", "\\$18", 1.0),
        ("18", "$18", 1.0),
        ("18", "US$18", 1.0),
        ("18", "€18", 1.0),
        ("18", "$180", 0.0),
        ("-5", "-\\$5", 1.0),
        ("-5", "−5", 1.0),
        ("\\$1,000.50", "1000.5", 1.0),
        # Words around a number
        ("18", "18 dollars", 1.0),
        ("18", "18 dollars.", 1.0),
        ("18", "180 dollars", 0.0),
        ("18", "The answer is 18.", 1.0),
        ("18", "it costs $18 each", 1.0),
        ("36", "18 dollars each, so 36 dollars in total", 1.0),
        ("18", "18 dollars each, so 36 dollars in total", 0.0),
        ("27", "27 apples or 28 apples", 0.0),
        ("28", "27 apples or 28 apples", 0.0),
        ("\\frac{3}{4}", "3/4 of a mile", 1.0),
        ("2\\sqrt{3}", "2\\sqrt{3} meters", 1.0),
        ("2", "2\\sqrt{3} meters", 0.0),
        ("2", "2*sqrt(3) meters", 0.0),
        ("2", "2xyz", 0.0),
        ("2", "log 2", 0.0),
        # Emphasis
        ("73", "**73**", 1.0),
        ("**73**", "73", 1.0),
        ("73", "*73*", 1.0),
        ("73", "`73`", 1.0),
        ("73", "_73_", 1.0),
        ("73", "**74**", 0.0),
        ("73", "**Answer:** 73", 1.0),
        ("73", "The answer is **73**.", 1.0),
        ("73", "**\\boxed{73}**", 1.0),
        ("73", "**$73$**", 1.0),
        ("23", "2**3", 0.0),
        # The same text, whatever it is
        ("no solution", "no solution", 1.0),
        ("$", "$", 1.0),
        ("27 or 28", "27 or 28", 1.0),
        ("x" * 2 * MOST_CHARACTERS, "x" * 2 * MOST_CHARACTERS, 1.0),
    ],
)
def test_answers_are_compared_by_meaning(right: str, answer: str | None, share: float) -> None:
    known = Math("math", Split(Path("x"), (), ()))
    assert known.verify(Problem("?", right), answer) == share


@settings(deadline=None)
@given(st.text(alphabet="0123456789+-/()\\${}x fracsqtboxed", max_size=12))
def test_any_text_is_graded(answer: str) -> None:
    known = Math("math", Split(Path("x"), (), ()))
    assert known.verify(Problem("?", "27"), answer) in {0.0, 1.0}


@settings(deadline=None)
@given(st.text(min_size=1, max_size=40))
def test_the_same_text_is_right(answer: str) -> None:
    assert Math("math", Split(Path("x"), (), ())).verify(Problem("?", answer), answer) == 1.0


@settings(deadline=None)
@given(st.integers(-(10**6), 10**6), st.sampled_from(["**{}**", "\\${}", "{} dollars", "$\\${}$", "`{}`", "it is {}."]))
def test_what_surrounds_a_number_means_nothing(number: int, form: str) -> None:
    known = Math("math", Split(Path("x"), (), ()))
    assert known.verify(Problem("?", str(number)), form.format(number)) == 1.0
    assert known.verify(Problem("?", form.format(number)), str(number + 1)) == 0.0


@pytest.mark.parametrize(
    ("text", "inside"),
    [("\\boxed{1} \\boxed {a{b}c} }", "a{b}c"), ("no box", ""), ("\\boxed{open", ""), ("\\boxed{}", "")],
)
def test_the_last_box_is_found(text: str, inside: str) -> None:
    assert last_boxed(text) == inside


def problems(count: int) -> list[dict[str, Any]]:
    return [{"problem": f"What is {number}+1?", "answer": number + 1} for number in range(count)]


def test_the_split_is_by_question_and_every_record_comes_once(tmp_path: Path) -> None:
    path = as_lines(tmp_path / "p.jsonl", problems(200) + problems(50))
    known = Math.load(path)
    held_out = [known.sample(seed, held_out=True) for seed in range(len(known.problems.held_out))]
    training = [known.sample(seed) for seed in range(len(known.problems.training))]
    assert len({problem.question for problem in held_out + training}) == len(held_out) + len(training) == 200
    assert all(in_held_out_share(f"math {problem.question}") for problem in held_out)
    assert 8 <= len(held_out) <= 35
    assert known.sample(len(training) + 3) == training[3]
    shuffled = Math.load(as_lines(tmp_path / "q.jsonl", problems(200)[::-1]))
    assert set(shuffled.problems.held_out) == set(held_out)

    test = task(f"math-test:{path}")
    assert {test.sample(seed, held_out=True) for seed in range(200)} == {*held_out, *training}
    with pytest.raises(ValueError, match=r"p\.jsonl has no training records"):
        test.sample(0)


def test_records_without_an_answer_are_left_out_aloud(tmp_path: Path) -> None:
    empty = [{"answer": ""}, {"answer": None}, {"answer": float("nan")}, {"solution": "no"}]
    path = as_lines(tmp_path / "p.jsonl", [AMC_23, *({"problem": "?", **fields} for fields in empty)])
    with pytest.warns(UserWarning, match="4 of 5 records have no answer"):
        known = Math.load(path, test=True)
    assert [problem.answer for problem in known.problems.held_out] == ["27"]


def test_there_are_no_demonstrations_of_mathematics(tmp_path: Path) -> None:
    known = Math.load(as_lines(tmp_path / "p.jsonl", RECORDS), test=True)
    with pytest.raises(ValueError, match=r"math-test:.* has no demonstrations"):
        known.demonstrate(known.sample(0, held_out=True), 0)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.jsonl", None, "there is no file .*gone.jsonl"),
        ("p.csv", "a,b", "expected a file that ends in .jsonl, .json, .parquet"),
        ("p.jsonl", "", "holds no records"),
        ("p.jsonl", '{"problem": "a", "answer": 1}\n{"problem', "line 2: expected JSON"),
        ("p.jsonl", "[1]\n", r"record 1: expected an object with fields, got \[1\]"),
        ("p.json", '{"problem": 1}', "expected an array of records, got dict"),
        ("p.json", "[", "expected JSON"),
        ("p.parquet", "no parquet", "expected parquet"),
        (
            "p.jsonl",
            '{"prompt": "a", "answer": 1}',
            "record 1: expected a field problem or question, got prompt, answer",
        ),
        ("p.jsonl", '{"problem": "a"}', "record 1: expected a field answer or solution, got problem"),
        ("p.jsonl", '{"problem": " ", "answer": 1}', "record 1: expected a question as text"),
        ("p.jsonl", '{"problem": "a", "answer": [1]}', "record 1: expected an answer as text or number"),
        ("p.jsonl", '{"problem": "a", "answer": true}', "record 1: expected an answer as text or number"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=f"data: .*{message}"):
        Math.load(tmp_path / name)


@pytest.mark.parametrize(("module", "ending"), [("pyarrow", "parquet"), ("math_verify", "jsonl")])
def test_a_missing_package_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, ending: str
) -> None:
    path = WRITERS[ending](tmp_path / f"p.{ending}", [AMC_23])
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"pip install \"asyncthink-kernels\[train\]\""):
        Math.load(path, test=True).verify(Problem("?", "1"), "1")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target": "24"}, "expected a target of 1 or more, got '24'"),
        ({"target": 0}, "expected a target of 1 or more, got 0"),
        ({"available_numbers": [3]}, "expected available_numbers as two or more integers"),
        ({"available_numbers": [3, 8.5]}, "expected available_numbers as two or more integers"),
        ({"solutions": "3*8"}, "expected solutions as a list of expressions"),
        ({"solutions": ["3*8", "3*9"]}, r"solution '3\*9' does not make 24 of \[2, 3, 4, 5, 6, 7, 8\]"),
        ({"solutions": ["8*3 = 25"]}, r"solution '8\*3 = 25' does not make 24"),
        ({"solutions": ["2*2*6"]}, r"solution '2\*2\*6' does not make 24"),
    ],
)
def test_wrong_countdown_records_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = as_lines(tmp_path / "c.jsonl", [COUNTDOWN, COUNTDOWN | change])
    with pytest.raises(ValueError, match=f"record 2: {message}"):
        ListedCountdown.load(path)


def test_listed_countdown_is_graded_and_demonstrated_like_generated(tmp_path: Path) -> None:
    twice = {"target": 30, "available_numbers": [5, 6, 5], "solutions": ["5*6"]}
    path = as_lines(tmp_path / "c.jsonl", [COUNTDOWN | {"target": 41, "solutions": ["5*7+6"]}, twice])
    known = ListedCountdown.load(path, test=True)
    plain, repeated = (known.sample(seed, held_out=True) for seed in range(2))
    assert known.verify(plain, "5*7+6, 6+7*5, 9*9") == 0.25
    assert known.verify(repeated, "5*6, 5*(5+6)-25") == 0.25
    assert known.demonstrate(plain, 3).question == "41 from 2 3 4 5 6 7 8"
    with pytest.raises(ValueError, match=r"puzzle: expected different numbers from 2 to 13 .* got '30 from 5 5 6'"):
        known.demonstrate(repeated, 3)
    with pytest.raises(ValueError, match="puzzle: expected at most 9 solutions"):
        known.demonstrate(Puzzle((2, 3, 4, 5, 6, 8, 9, 10, 12), 24), 3)


def test_records_keep_their_order(tmp_path: Path) -> None:
    assert read_records(as_lines(tmp_path / "p.jsonl", problems(5))) == problems(5)
