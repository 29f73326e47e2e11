"""The GPU bench's records, goals and page, from figures made up."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))

from bench.gpu import goals, report  # noqa: E402
from bench.gpu.record import Copy, Entry, Record, Row, Stage, records  # noqa: E402
from bench.gpu.spread import Spread  # noqa: E402


def at(seconds: float) -> Spread:
    return Spread(seconds, 0.9 * seconds, 1.1 * seconds, 7)


def made_up(date: str = "2001-02-03", name: str = "Made-up GPU") -> Record:
    """Round numbers that no device ever gave: copies at 1 GB/s, three cells of 100, 20 and 1 MB."""
    record = Record({"type": "cuda", "name": name, "backends": {"append_kv": "triton"}}, {"torch": "0.0"}, date)
    record.copies = [Copy(1_000_000, at(0.002)), Copy(10_000_000, at(0.01))]
    for cell, size, ours, peer in (("8/1 1,2|512,128", 100, 0.11, 0.22), ("8/1 1,4|512,128", 20, 0.04, 0.02),
                                   ("8/1 256|1024", 1, 0.002, 0.004)):  # fmt: skip
        row = Row(cell, "bfloat16", 2, 640, size * 1_000_000, 10**9, 512, planning={"fresh": at(1e-4)})
        row.entries = [
            Entry(goals.OURS, True, detail="tile 64x64", error=1e-3, flushed=at(ours), warm=at(ours / 2), host=at(1.0)),
            Entry("slow peer", False, flushed=at(9.0), warm=at(9.0)),
            Entry("fast peer", False, reason="cannot be captured", flushed=at(peer), warm=at(peer), plan=at(0.5)),
            Entry("absent peer", False, reason="not importable"),
            Entry("broken peer", False, failed=True, reason="ValueError: wrong result"),
        ]
        record.cells.append(row)
    record.skipped["64/8 256|1024"] = "no time left"
    record.stages.append(Stage("tests", False, 12.0, "1 failed", "tests.log"))
    return record


def test_records_come_back_as_they_were(tmp_path: Path) -> None:
    for date, name in (("2001-02-03", "A B"), ("2001-02-04", "A B"), ("2001-01-01", "Another")):
        made_up(date, name).save(tmp_path / made_up(date, name).file_name)
    (tmp_path / "unrelated.json").write_text("{}")
    Record({"type": "cuda", "name": "A B"}, {}, "2001-02-05").save(tmp_path / "a-b-2001-02-05-failed.json")
    *found, (failed, _) = records(tmp_path)
    assert failed.name == "a-b-2001-02-05-failed.json"
    assert [path.name for path, _ in found] == ["another-2001-01-01.json", "a-b-2001-02-04.json"]
    assert found[1][1] == made_up("2001-02-04", "A B")
    with pytest.raises(ValueError, match="schema"):
        Record.load(tmp_path / "unrelated.json")


# The page


def test_goals_are_counted() -> None:
    large, middle, slower, mean = goals.goals(made_up())
    assert (large.measured, large.met) == ("1 of 1 cells; median 91%, least 91% (8/1 1,2|512,128)", True)
    assert (middle.measured, middle.met) == ("0 of 1 cells; median 50%, least 50% (8/1 1,4|512,128)", False)
    without = "; without absent peer, broken peer"
    assert (slower.measured, slower.met) == (f"2 of 3 cells; least 0.50x (8/1 1,4|512,128){without}", False)
    assert (mean.measured, mean.met) == (f"1.26x over 3 cells{without}", False)
    assert all(goal.met is None and not goal.measured for goal in goals.goals(None))


def test_the_page_hides_nothing(tmp_path: Path) -> None:
    record = made_up()
    path = tmp_path / record.file_name
    path.with_suffix(".md").write_text("Reasons, by hand.")
    text = report.page([(path, record)], tmp_path / "RESULTS_GPU.md")
    for said in ("## Made-up GPU, 2001-02-03", "append_kv triton", "torch 0.0", "Reasons, by hand.", "1 failed",
                 "| absent peer | not run | not importable | 3 of 3 |", "no time left",
                 "| broken peer | **failed** | ValueError: wrong result | 3 of 3 |",
                 "| fast peer | no graph | cannot be captured | 3 of 3 |",
                 "**20000.0 (18000.0 - 22000.0)**", "not slower than the best peer in any cell"):  # fmt: skip
        assert said in text, said
    for kind in ("latency", "bandwidth"):
        picture = tmp_path / f"made-up-gpu-2001-02-03-{kind}.png"
        assert picture.read_bytes().startswith(b"\x89PNG") and f"({picture.name})" in text
    assert "Not measured" not in text


def test_a_page_without_matplotlib_has_no_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "bench.gpu.plots", raising=False)
    monkeypatch.delattr("bench.gpu.plots", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib.axes", None)
    record = made_up()
    text = report.page([(tmp_path / record.file_name, record)], tmp_path / "RESULTS_GPU.md")
    assert "No pictures: " in text and "20000.0" in text and not list(tmp_path.iterdir())


def test_without_a_gpu_the_page_says_so(tmp_path: Path) -> None:
    record = made_up()
    record.device["type"] = "cpu"
    for found in ([], [(tmp_path / "cpu.json", record)]):
        text = report.page(found, tmp_path / "RESULTS_GPU.md")
        assert "**Not measured.**" in text and "bash bench/gpu.sh" in text and text.count("not measured |") == 4
    assert not list(tmp_path.iterdir()), "no pictures of a CPU"


def test_the_committed_page_is_what_the_committed_records_make() -> None:
    place = ROOT / "bench" / "RESULTS_GPU.md"
    found = records(ROOT / "bench" / "results")
    assert found or place.read_text(encoding="utf-8") == report.page(found, place)
    for _, record in found:
        assert f"## {record.device['name']}, {record.date}" in place.read_text(encoding="utf-8")
