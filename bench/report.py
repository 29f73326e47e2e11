"""`python bench/report.py`: the tables that `--results` left in bench/results, as one page with pictures.

`--gpu` makes RESULTS_GPU.md of bench/results/gpu instead. Nothing on a page is written by hand: goals are functions of
the rows, and what was not measured says so.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from goals import GOALS, GPU_GOALS, goals
from pictures import PICTURES, Rows

BENCH = Path(__file__).parent
GPU_HOW = """\
# Results on a GPU

`bash bench/gpu.sh` builds, tests and benches in under ten minutes, without a network, and writes this page. With
`--quick` it takes under eight: one architecture, the tests that use the GPU, the tables that decide the goals; it then
names the commands of what it left out. With `--dry-run` it prints what it would do.

`fork_join` is one episode of a model of random weights in the shape of Qwen3-4B, bfloat16, with CUDA graphs of its
decode steps: an organizer and 4 workers behind a prompt of 512 tokens. The host waits for the logits of every step.

A cell of `tree_grid` is one layer's attention of one decoding step: `heads/kv heads`, then the tree as `nodes of each
level|tokens of each node`, one new token for each leaf, bfloat16, head_dim 128, pages of 16 tokens; `~` means leaves of
unequal length. Everybody reads the same shared pages; K and V are never replicated for a peer, but SDPA, which reads no
pages, gathers what it needs within its time, and FlexAttention gets its packed copy of all unique tokens for nothing.
Results are compared with a float64 computation before anything is timed. Calls are replays of CUDA graphs between two
events, in turn; L2 holds neither the call's data nor lines to be written back, but in columns called *warm*, where the
same call ran just before. Bytes are those that must move: K and V of every unique token, queries and outputs. The limit
is the bandwidth of a large device-to-device copy of the same run, bytes read and bytes written. Planning on the host is
shown apart.
"""


def page(results: Path) -> str:
    """The page; pictures are written beside the tables."""
    found, tables = read(results)
    if not tables:
        raise SystemExit(f"{results}: expected tables of `pytest bench/ --benchmark --results {results}`, found none")
    lines = ["# Results", ""]
    lines += [f"`pytest bench/ --benchmark --results {results.name}` and `python bench/report.py` make this page."]
    lines += ["What a GPU does stands in [RESULTS_GPU.md](RESULTS_GPU.md).", ""]
    lines += [f"Measured: {', '.join(sorted({_made(found[name]) for name in tables}))}.", ""]
    lines += [
        "## Goals",
        "",
        *goals(tables, GOALS),
        "",
        "Why those that are missed are missed: [results/README.md](results/README.md).",
        "",
    ]
    return "\n".join(lines + sections(results, found, tables))


def gpu_page(results: Path) -> str:
    """The page of what a GPU measured, or that none did."""
    found, tables = read(results)
    lines = [GPU_HOW]
    if tables:
        lines += [f"Measured: {', '.join(sorted({_made(found[name]) for name in tables}))}.", ""]
    else:
        lines += ["**Not measured.** No GPU was at hand; nothing on this page is an estimate.", ""]
    return "\n".join([*lines, *goals(tables, GPU_GOALS), "", *sections(results, found, tables)])


def read(results: Path) -> tuple[dict[str, Any], dict[str, Rows]]:
    """All that the tables' files hold, and the rows of each."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(results.glob("*.json"))}
    return found, {name: data["rows"] for name, data in found.items() if isinstance(data, dict) and "rows" in data}


def sections(results: Path, found: dict[str, Any], tables: dict[str, Rows]) -> list[str]:
    """A section a table; pictures are written beside it."""
    lines: list[str] = []
    for name in tables:
        lines += [f"## {name}", ""]
        for stem, draw in PICTURES.get(name, {}).items():
            if draw(found[name], results / f"{stem}.png"):
                lines += [f"![{stem}](results/{stem}.png)", ""]
        lines += [(results / f"{name}.md").read_text(encoding="utf-8")]
    return lines


def _made(data: dict[str, Any]) -> str:
    return f"{data['date']}, {data['machine']}, torch {data['torch']}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("results", type=Path, nargs="?", help="bench/results; with --gpu bench/results/gpu")
    parser.add_argument("--page", type=Path, help="bench/RESULTS.md; with --gpu bench/RESULTS_GPU.md")
    parser.add_argument("--gpu", action="store_true", help="the page of what a GPU measured")
    options = parser.parse_args()
    results = options.results or BENCH / ("results/gpu" if options.gpu else "results")
    place = options.page or BENCH / ("RESULTS_GPU.md" if options.gpu else "RESULTS.md")
    place.write_text(gpu_page(results) if options.gpu else page(results), encoding="utf-8")


if __name__ == "__main__":
    main()
