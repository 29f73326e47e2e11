"""The scripts of the experiment countdown-10x4: floors, choices, tables."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from asyncthink import Episode, checkpoint_path
from asyncthink.tasks import TASKS
from asyncthink.tasks.search import find_all
from asyncthink.tasks.split import in_held_out_share
from asyncthink.train.demonstrations import encode
from asyncthink.train.loading import TINY_PROMPTS

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "docs" / "countdown_10x4"
sys.path.append(str(FOLDER))

import choose  # noqa: E402
import covered  # noqa: E402
import drills  # noqa: E402
import floor  # noqa: E402
import looked_up  # noqa: E402
import page  # noqa: E402
from tables import table_of, validations  # noqa: E402


def test_no_demonstration_is_below_the_floor_and_one_comes_near() -> None:
    task: Any = TASKS["countdown"]
    puzzle = task.sample(4)
    made = floor.floors(task, puzzle, 4)
    assert made["alone"] > made["1 workers"] > made["2 workers"]
    paths = {}
    for seed in range(60):
        episode = encode(task.demonstrate(puzzle, seed), floor.TOKENIZER, TINY_PROMPTS)
        workers = len(episode.traces) - 1
        if 1 <= workers <= 3:  # with four forks the pool is used twice
            paths[workers] = min(paths.get(workers, 10**6), episode.critical_path_tokens)
    for workers, path in paths.items():
        assert made[f"{workers} workers"] <= path < 1.5 * made[f"{workers} workers"]


def test_independent_agents_find_more_with_more_room() -> None:
    task: Any = TASKS["countdown"]
    puzzle = task.sample(4)
    shares = [floor.independent(task, puzzle, 4, budget) for budget in (0, 120, 10_000)]
    assert shares[0] == 0 <= shares[1] <= shares[2] == 1


@pytest.mark.parametrize(
    "drill", [drills.THIRDS, drills.PAIRS, drills.NEAR, drills.ALONE, drills.EVEN], ids=lambda drill: drill.name
)
def test_a_drill_is_held_out_by_numbers_and_right(drill: Any) -> None:
    for seed, held_out in [(seed, held_out) for seed in range(20) for held_out in (False, True)]:
        puzzle = drill.sample(seed, held_out)
        assert puzzle == drill.sample(seed, held_out)
        assert in_held_out_share(TASKS["countdown-10x4"].split_name(puzzle)) == held_out
        made = drill.demonstrate(puzzle, seed, "sequential")
        answered = re.findall(r" #\d:([^ <]+)", made.scripts[0].text)
        known = find_all(puzzle.numbers, puzzle.target, drill.largest)
        if drill is drills.THIRDS:
            found = re.findall(r"\+(\d+)( a:)?,", made.scripts[0].text)
            assert [bool(label) for _, label in found] == [number in puzzle.numbers for number in puzzle.listed]
            assert len(found) == drills.ASKED
        else:
            assert set(answered) <= set(known) and (drill is not drills.NEAR or answered)
            assert drill is not drills.ALONE or len(answered) == drill.asked
    pairs = [drills.PAIRS.sample(seed) for seed in range(200)]
    told = [" a:" in drills.PAIRS.demonstrate(pair, 0).scripts[0].text for pair in pairs]
    assert 0.2 < sum(told) / len(told) < 0.8


def test_third_numbers_are_where_a_label_may_follow() -> None:
    words = ["7", "*", "17", "=", "119", "-", "4", ",", "17", "*", "19", "=", "32", "3", "-", "20", " a:", "17", "*"]
    assert looked_up.thirds(words) == [6, 15]


def test_a_search_without_a_mistake_comes_through_with_every_solution() -> None:
    puzzle: Any = covered.TASK.sample(3)
    (solo,) = drills.ALONE.demonstrate(puzzle, 3, "sequential").scripts
    answer = solo.text.partition("<ANSWER>")[2].partition("</ANSWER>")[0]
    episode = Episode("q", "sequential", answer=answer, traces=[SimpleNamespace(text=solo.text)])
    counts = covered.followed(puzzle, episode)
    assert counts["lines"] > 10 and counts["wrong"] == counts["foreign"] == 0
    assert counts["solutions"] == counts["searched"] == counts["written"] == counts["answered"] == 4
    wrong = re.sub(r"=(\d+)", "=1", solo.text) + "\n1+99=100\n"
    counts = covered.followed(puzzle, Episode("q", "sequential", answer="", traces=[SimpleNamespace(text=wrong)]))
    assert counts["wrong"] == counts["lines"] - 1 and counts["foreign"] == 1
    assert counts["searched"] == 4 and counts["answered"] == 0
    assert covered.expected(puzzle, (1, 99)) == ("", [])


def test_what_is_searched_is_counted_over_puzzles() -> None:
    counts = covered.covered("sequential", str(checkpoint_path("countdown-10x4")), 0.0, 2)
    assert counts["lines"] > 20 and counts["solutions"] == 8 >= counts["searched"] >= counts["written"]


def report(temperature: float, solved: list[float], path: float, sha: str = "a") -> dict[str, Any]:
    mean = {"value": sum(solved) / len(solved), "low": 0.0, "high": 1.0}
    columns = {"solved": solved, "accuracy": solved, "critical_path_tokens": [path] * len(solved)}
    row = {
        "at_least": {"4": mean}, "critical_path_tokens": {"value": path}, "total_tokens": {"value": 2 * path},
        "per_puzzle": columns | {"format_errors": [0.0] * len(solved)},
    }  # fmt: skip
    return {"temperature": temperature, "budget": 410, "questions_sha256": sha, "rows": [row]}


def write(folder: Path, **reports: dict[str, Any]) -> None:
    for name, made in reports.items():
        (folder / f"{name.replace('_', '-')}.json").write_text(json.dumps(made))


def test_the_temperature_is_chosen_by_a_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(
        tmp_path,
        sweep_asyncthink_0=report(0.0, [1.0, 1.0], 300), sweep_asyncthink_1=report(1.0, [1.0, 1.0], 200),
        sweep_asyncthink_2=report(1.2, [1.0, 0.0], 100), sweep_paper_0=report(0.0, [1.0, 1.0], 100),
    )  # fmt: skip
    assert choose.temperature(tmp_path, "asyncthink") == 0
    assert capsys.readouterr().out == "1.0\n"
    assert choose.temperature(tmp_path, "parallel") == 1
    assert "there is no sweep of parallel" in capsys.readouterr().err


@pytest.mark.parametrize(("accuracy", "status"), [([1.0, 0.75], 0), ([1.0, 0.5], choose.MISSED)])
def test_a_cold_start_that_finds_too_little_misses_a_rule(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], accuracy: list[float], status: int
) -> None:
    write(tmp_path, cold_0=report(0.0, accuracy, 300))
    assert choose.found(tmp_path / "cold-0.json") == status
    assert "expected at least 0.85" in capsys.readouterr().out


@pytest.mark.parametrize(("asked", "status"), [(0.0, 0), (1.1, choose.MISSED)])
def test_copied_answers_are_judged_on_the_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], asked: float, status: int
) -> None:
    monkeypatch.setattr(choose, "COPIED", asked)
    assert choose.copied(checkpoint_path("countdown"), "410", puzzles=2) == status
    assert f"of 2 held-out organizers end right (expected at least {asked})" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("known", "answer"),
    [
        ({}, "410"),
        ({410: 0.75}, "380"),
        ({410: 0.6}, "440"),
        ({410: 0.695, 380: 0.6}, "fits 410"),
        ({410: 0.75, 380: 0.6, 440: 0.8}, "398"),
        ({410: 0.6, 380: 0.5, 440: 0.64}, None),
    ],
)
def test_the_budget_is_tried_then_interpolated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], known: dict[int, float], answer: str | None
) -> None:
    for limit, solved in known.items():
        for heat, worse in ((0.6, 0.1), (1.0, 0), (1.2, 0.2)):  # the best temperature counts
            write(tmp_path, **{f"budget_{limit}_{heat}": report(heat, [solved - worse] * 2, 400) | {"budget": limit}})
    assert choose.budget(tmp_path, "410 380 440") == (0 if answer else 1)
    printed = capsys.readouterr()
    assert printed.out == (f"{answer}\n" if answer else "")
    assert answer or "no budget fits" in printed.err


def test_a_single_budget_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert choose.budget(tmp_path, "410") == 0 and capsys.readouterr().out == "410\n"
    write(tmp_path, budget_410_1=report(1.0, [0.2], 400))
    assert choose.budget(tmp_path, "410") == 0 and capsys.readouterr().out == "fits 410\n"


def test_a_table_is_over_seeds_and_puzzles(tmp_path: Path) -> None:
    write(
        tmp_path,
        test_asyncthink_0=report(0.0, [1.0, 1.0, 1.0, 0.0], 200), test_asyncthink_1=report(0.0, [1.0] * 4, 220),
        test_parallel_0=report(1.0, [1.0, 0.0, 0.0, 1.0], 400),
        seconds={"seconds": {"asyncthink": [0.2, 0.3, 0.4], "parallel": [0.6]}},
    )  # fmt: skip
    made = table_of(tmp_path, [("test-asyncthink", "asyncthink"), ("test-parallel", "parallel")], "parallel")
    rows = [line.split(" | ") for line in made.splitlines()]
    assert rows[2][0] == "| asyncthink" and rows[2][1].startswith("87.5 [") and rows[2][-1] == "2 |"
    assert rows[2][4].startswith("0.525 [") and rows[3][4] == ""
    low, high = map(float, re.findall(r"\[([\d.]+), ([\d.]+)\]", rows[2][1])[0])
    assert 40 < low < 87.5 < high <= 100
    assert "- asyncthink - parallel: all 4 +37.5 [" in made
    assert "asyncthink 0.300 s, x0.500 of parallel (0.600 s)" in made
    assert table_of(tmp_path, [("test-none", "none")], "parallel") == "Not run yet."
    write(tmp_path, sudoku_asyncthink_0=report(0.0, [1.0], 150), sudoku_parallel_0=report(0.0, [1.0], 150))
    other = table_of(tmp_path, [("sudoku-asyncthink", "asyncthink"), ("sudoku-parallel", "parallel")], "parallel")
    assert "seconds" not in other, "these are of the other task"
    write(tmp_path, test_parallel_1=report(1.0, [1.0] * 4, 400, sha="b"))
    with pytest.raises(ValueError, match="test-parallel: expected reports on the same puzzles"):
        table_of(tmp_path, [("test-parallel", "parallel")], "parallel")


def test_what_is_collected_names_arms_and_no_folder_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = tmp_path / "runs"
    monkeypatch.setattr(page, "DATA", tmp_path / "data")
    for name in ("parallel-0-410", "parallel-0-380", "asyncthink-0"):
        (runs / name).mkdir(parents=True)
        (runs / name / "config.json").write_text(json.dumps({"out": f"{runs}/{name}"}))
        (runs / name / "metrics.jsonl").write_text('{"step": 1, "tokens": 5, "seconds": 1.0, "loss": 0.5}\n')
    for name in ("parallel-0-410", "parallel-0-380"):
        (runs / name / "finished").touch()
    (runs / "parallel-0").symlink_to("parallel-0-410")
    (runs / "reports").mkdir()
    write(runs / "reports", test_parallel_0={"model": f"{runs}/parallel-0/best-000060"})
    page.collect(runs)
    collected = {file.name: file.read_text() for file in page.DATA.iterdir()}
    arms = [f"{arm}.{kind}.json" for arm in ("parallel-0", "parallel-0-380") for kind in ("config", "log")]
    assert sorted(collected) == sorted([*arms, "test-parallel-0.json"])
    assert str(tmp_path) not in "".join(collected.values())
    assert "runs/countdown_10x4/parallel-0/best-000060" in collected["test-parallel-0.json"]


def test_the_page_is_made_of_the_committed_files() -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.with_tables(text) == text
    for picture in ("frontier", "validation"):
        drawn = (FOLDER / f"{picture}.png").exists()
        assert (f"countdown_10x4/{picture}.png" in text) is drawn


def test_a_page_has_a_place_for_every_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "DATA", tmp_path)
    places = "".join(f"<!-- table: {name} -->\nold\n<!-- end -->\n" for name in [*page.TABLES, "validation"])
    made = page.with_tables(f"Before.\n{places}Behind.\n")
    assert "old" not in made and made.startswith("Before.") and made.endswith("Behind.\n")
    assert made.count("Not run yet.") == len(page.TABLES) + 1
    with pytest.raises(ValueError, match="page: expected a place for each table, got none for transfer"):
        page.with_tables(places.replace("table: transfer", "table: another"))


def test_validations_are_listed_one_after_the_other(tmp_path: Path) -> None:
    figures = {"solved": 0.2, "accuracy": 0.55, "format_errors": 0.0, "critical_path_tokens": 310.4}
    notes = [{"step": 0, "validation": figures}, {"step": 15, "validation": figures | {"solved": 0.405}}, {"step": 15}]
    (tmp_path / "free-1.log.json").write_text(json.dumps({"notes": notes}))
    made = validations(tmp_path, [("free", "any deal"), ("paper", "none")])
    assert made.splitlines()[2:] == ["| any deal | 0, 15 | 20.0, 40.5 | 55.0, 55.0 | 0.0, 0.0 | 310, 310 |"]
    assert validations(tmp_path, [("paper", "none")]) == "Not run yet."


def test_pictures_are_drawn_of_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "data"
    data.mkdir()
    monkeypatch.setattr(page, "DATA", data)
    monkeypatch.setattr(page, "HERE", tmp_path)
    assert page.draw() == []
    write(data, frontier_asyncthink_200=report(0.0, [1.0, 0.0], 180))
    assert page.draw() == ["frontier"]
    notes = [{"step": step, "validation": {"solved": 0.5, "critical_path_tokens": 300}} for step in (0, 15)]
    (data / "asyncthink-0.log.json").write_text(json.dumps({"notes": notes}))
    assert page.draw() == ["frontier", "validation"]
    for name in ("frontier", "validation"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_the_scripts_say_how_they_are_used() -> None:
    for script in (FOLDER / "run.sh", ROOT / "docs/smollm2/run.sh"):
        done = subprocess.run(["bash", script], capture_output=True, text=True, check=False)
        assert done.returncode == 2 and "run.sh" in done.stderr


def test_a_report_that_failed_is_not_kept(tmp_path: Path) -> None:
    lines = f". {ROOT}/docs/steps.sh; RUNS={tmp_path}; asyncthink() {{ echo half; return $status; }}"
    for status, kept in ((1, False), (0, True)):
        command = f"set -e; status={status}; {lines}; report one && exit 0; exit 4"
        done = subprocess.run(["bash", "-c", command], check=False)
        assert (done.returncode == 0) is kept is (tmp_path / "reports/one.json").exists()
