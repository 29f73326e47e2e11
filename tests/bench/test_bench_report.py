"""The page of the CPU benches: goals follow from rows, and what is missing says so."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "bench"))

import report  # noqa: E402

ROW = {"dtype": "bfloat16", "median us": 2000.0, "GB/s": 20.0, "GFLOP/s": 90.0, "% of limit": 80.0, "x sdpa": 9.0}


def write(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    made = {"date": "2026-01-02", "machine": "a machine", "torch": "2.x"}
    (folder / f"{name}.json").write_text(json.dumps(made | {"rows": rows, "notes": []}))
    (folder / f"{name}.md").write_text(f"the table of {name}\n")


def goal(text: str, name: str) -> str:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {name}")]
    return line


def test_page(tmp_path: Path) -> None:
    cells = [(1, 1024, 1.5), (4, 1024, 4.0), (8, 1024, 4.0), (16, 1024, 0.9)]
    write(tmp_path, "tree_attention", [ROW | {"shape": f"{b} x {p}", "x prefix once": x} for b, p, x in cells])
    corner = {"dtype": "bfloat16", "branches": 8, "prefix": 4096, "tokens/s": 100.0, "x transformers": 30.0}
    write(tmp_path, "generation", [corner | {"transformers tokens/s": 3.3}])
    write(tmp_path, "soak", [{"episodes": 9, "RSS MB start": 10.0, "RSS MB end": 90.0, "pages left": 0}])
    text = report.page(tmp_path)
    assert "2026-01-02, a machine, torch 2.x" in text and "the table of soak" in text
    assert goal(text, "tree attention: 2x").endswith("| 2.16 | met |")
    assert "1 of 4 slower; least 0.90 (16 x 1024 bfloat16) | missed" in goal(text, "tree attention: no cell")
    assert "0 of 4 farther; most 1.25" in goal(text, "tree attention: within")
    assert goal(text, "decoding: 25x").endswith("| 30.00 | met |")
    assert goal(text, "decoding: 2x llama.cpp").endswith("| not measured |  |")
    assert goal(text, "joins by append").endswith("| not measured |  |")
    assert goal(text, "2,000 episodes").endswith("| missed |")
    assert "results/roofline.png" not in text  # its limits were not measured
    for name in ("tree_attention", "generation"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert f"results/{name}.png" in text


def test_compiled_counts_where_it_is_faster(tmp_path: Path) -> None:
    one = {"dtype": "bfloat16", "branches": 1, "prefix": 512, "x llama.cpp": 0.9, "compiled x llama.cpp": 1.1}
    corner = {"dtype": "bfloat16", "branches": 8, "prefix": 4096, "x llama.cpp": 1.9, "compiled x llama.cpp": 1.8}
    times = {"tokens/s": 1.0, "llama.cpp tokens/s": 1.0}
    write(tmp_path, "generation", [one | times, corner | times])
    cells = [(8, 9.0, "no"), (256, 14.0, "no"), (8, 4.0, "yes")]
    write(tmp_path, "profile", [{"agents": a, "other %": share, "compiled": c} for a, share, c in cells])
    text = report.page(tmp_path)
    assert goal(text, "decoding: 2x llama.cpp").endswith("| 1.90; compiled 1.80 | missed |")
    least = "| least 0.90 (bfloat16 1 x 512); compiled 1.10 (bfloat16 1 x 512) | met |"
    assert goal(text, "decoding: not slower").endswith(least)
    assert goal(text, "neither linear").endswith("| 8: 4.0% compiled, 8: 9.0%, 256: 14.0% | met |")


def test_both_dtypes_of_a_hybrid_count(tmp_path: Path) -> None:
    corners = [
        {"branches": 8, "prefix": 4096, "dtype": name, "x transformers": x} for name, x in [("a", 8.0), ("b", 4.9)]
    ]
    write(tmp_path, "hybrid", [*corners, corners[1] | {"prefix": 512, "x transformers": 1.0}])
    assert goal(report.page(tmp_path), "recurrent layers").endswith("| a 8.00, b 4.90 | missed |")


def test_roofline(tmp_path: Path) -> None:
    rows = [ROW | {"shape": f"{b} x 1024", "x prefix once": 2.0} for b in (1, 4, 8, 16)]
    write(tmp_path, "tree_attention", rows)
    data = json.loads((tmp_path / "tree_attention.json").read_text())
    data["limits"] = {"bandwidth": 5e10, "copy": 4e10, "bf16": 3e11, "f32": 2e11}
    (tmp_path / "tree_attention.json").write_text(json.dumps(data))
    assert "results/roofline.png" in report.page(tmp_path)
    assert (tmp_path / "roofline.png").read_bytes().startswith(b"\x89PNG")


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="expected tables of"):
        report.page(tmp_path)


def test_the_page_in_the_repository_is_that_of_its_tables(tmp_path: Path) -> None:
    results = tmp_path / "results"
    results.mkdir()
    for path in (ROOT / "bench" / "results").glob("*"):
        (results / path.name).write_bytes(path.read_bytes())
    assert report.page(results) == (ROOT / "bench" / "RESULTS.md").read_text(encoding="utf-8")


def test_the_page_of_a_gpu(tmp_path: Path) -> None:
    cells = [("a", 100, 95.0, 1.5), ("b", 20, 50.0, 0.5), ("c", 1, 10.0, 2.0)]
    rows = [{"shape": shape, "MB": size, "% of limit": share, "x peer": x, "warm x peer": 9.0, "x other": 3.0}
            for shape, size, share, x in cells]  # fmt: skip
    write(tmp_path, "tree_grid", rows)
    text = report.gpu_page(tmp_path)
    assert "the table of tree_grid" in text and "Not measured" not in text
    assert goal(text, "at least 90%").endswith("| 1 of 1 cells; median 95%, least 95% (a) | met |")
    assert goal(text, "at least 70%").endswith("| 0 of 1 cells; median 50%, least 50% (b) | missed |")
    assert goal(text, "not slower").endswith("| 2 of 3 cells; least 0.50x (b) | missed |")
    assert goal(text, "1.3x").endswith("| 1.14x over 3 cells | missed |")


def test_without_a_gpu_the_page_says_so(tmp_path: Path) -> None:
    text = report.gpu_page(tmp_path)
    assert "**Not measured.**" in text and "bash bench/gpu.sh" in text and text.count("| not measured |") == 4


def test_the_committed_page_of_a_gpu_is_that_of_its_tables() -> None:
    assert report.gpu_page(ROOT / "bench/results/gpu") == (ROOT / "bench/RESULTS_GPU.md").read_text(encoding="utf-8")
