"""`python bench/report.py`: the tables that `--results` left in bench/results, as one page with pictures.

Nothing on the page is written by hand: goals are functions of the rows, and what was not measured says so.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pictures import PICTURES, Rows, ratios

BENCH = Path(__file__).parent
NEVER = ("not measured", "")


def mean_of_tree_attention(tables: dict[str, Rows]) -> tuple[str, str]:
    fastest = [min(ratios(row)) for row in tables["tree_attention"]]
    mean = statistics.geometric_mean(fastest)
    return f"{mean:.2f}", _met(mean >= 2)


def worst_of_tree_attention(tables: dict[str, Rows]) -> tuple[str, str]:
    cells = sorted((min(ratios(row)), f"{row['shape']} {row['dtype']}") for row in tables["tree_attention"])
    slower = sum(ratio < 1 for ratio, _ in cells)
    return f"{slower} of {len(cells)} slower; least {cells[0][0]:.2f} ({cells[0][1]})", _met(not slower)


def limit_of_tree_attention(tables: dict[str, Rows]) -> tuple[str, str]:
    over = sorted((100 / r["% of limit"], f"{r['shape']} {r['dtype']}") for r in _long(tables["tree_attention"]))
    far = sum(ratio > 1.5 for ratio, _ in over)
    return f"{far} of {len(over)} farther; most {over[-1][0]:.2f} ({over[-1][1]})", _met(not far)


def _long(rows: Rows) -> Rows:
    return [row for row in rows if row["median us"] > 1000]


def _corner(tables: dict[str, Rows]) -> dict[str, Any]:
    rows = tables["generation"]
    return next(r for r in rows if (r["dtype"], r["branches"], r["prefix"]) == ("bfloat16", 8, 4096))


def _both(cells: list[tuple[dict[str, Any], str]], peer: str) -> tuple[str, float]:
    """The least ratio to a peer, of ours as it comes and compiled, in words; and the least of the better ones."""
    texts, best = [], []
    for prefix in ("", "compiled "):
        found = [(row[f"{prefix}x {peer}"], name) for row, name in cells if f"{prefix}x {peer}" in row]
        if found:
            texts.append(f"{prefix}{min(found)[0]:.2f}" + (f" ({min(found)[1]})" if len(cells) > 1 else ""))
    if not texts:
        raise KeyError(peer)
    for row, _ in cells:
        best.append(max(row[name] for name in (f"x {peer}", f"compiled x {peer}") if name in row))
    return "; ".join(texts), min(best)


def twice_llama(tables: dict[str, Rows]) -> tuple[str, str]:
    text, best = _both([(_corner(tables), "")], "llama.cpp")
    return text, _met(best >= 2)


def never_behind_llama(tables: dict[str, Rows]) -> tuple[str, str]:
    cells = [(r, f"{r['dtype']} {r['branches']} x {r['prefix']}") for r in tables["generation"]]
    text, best = _both(cells, "llama.cpp")
    return f"least {text}", _met(best >= 1)


def beyond_transformers(tables: dict[str, Rows]) -> tuple[str, str]:
    text, best = _both([(_corner(tables), "")], "transformers")
    return text, _met(best >= 25)


def cheap_joins(tables: dict[str, Rows]) -> tuple[str, str]:
    cells = [
        (r["re-prefill over joins"], f"{r['join']}, {r['prefix']}") for r in tables["joins"] if r["join"] != "exact"
    ]
    return f"least {min(cells)[0]:.0f} ({min(cells)[1]})", _met(min(cells)[0] >= 20)


def _crowd(tables: dict[str, Rows]) -> dict[str, Any]:
    return next(row for row in tables["scale"] if (row["agents"], row["prefix"]) == (1024, 4096))


def planning(tables: dict[str, Rows]) -> tuple[str, str]:
    ms = next(row["plan and schedule ms"] for row in tables["profile"] if row["agents"] == 1024)
    return f"{ms:.2f} ms a step", _met(ms <= 1)


def pages(tables: dict[str, Rows]) -> tuple[str, str]:
    row = _crowd(tables)
    text = f"{row['pages']} pages, {row['pages expected']} expected, {row['pages unshared']} without sharing"
    return text, _met(row["pages"] == row["pages expected"])


def rows_not_products(tables: dict[str, Rows]) -> tuple[str, str]:
    short = next(row for row in tables["scale"] if (row["agents"], row["prefix"]) == (1024, 512))
    ratio = _crowd(tables)["step ms"] / short["step ms"]
    return f"8 times the prefix: {ratio:.2f} times the step", "shown"


def flat(tables: dict[str, Rows]) -> tuple[str, str]:
    (row,) = tables["soak"]
    text = f"{row['RSS MB start']:.0f} MB after a tenth, {row['RSS MB end']:.0f} at the end of {row['episodes']}"
    return text, _met(row["RSS MB end"] - row["RSS MB start"] < 16 and not row["pages left"])


def small_rest(tables: dict[str, Rows]) -> tuple[str, str]:
    rows = [row for row in tables["profile"] if row["agents"] < 1024]
    cells = [(row["agents"], row["other %"], " compiled" * (row["compiled"] == "yes")) for row in rows]
    best = {agents: min(share for number, share, _ in cells if number == agents) for agents in (8, 256)}
    text = ", ".join(f"{agents}: {share:.1f}%{compiled}" for agents, share, compiled in sorted(cells))
    return text, _met(best[8] <= 5 and best[256] <= 15)


def _met(yes: bool) -> str:
    return "met" if yes else "missed"


GOALS: dict[str, Callable[[dict[str, Rows]], tuple[str, str]]] = {
    "tree attention: 2x the fastest peer in the geometric mean": mean_of_tree_attention,
    "tree attention: no cell slower than the fastest peer": worst_of_tree_attention,
    "tree attention: within 1.5x of the limit above 1 ms": limit_of_tree_attention,
    "decoding: 2x llama.cpp at 8 branches x 4,096 (bfloat16)": twice_llama,
    "decoding: not slower than llama.cpp anywhere": never_behind_llama,
    "decoding: 25x transformers at 8 branches x 4,096 (bfloat16)": beyond_transformers,
    "joins by append and link 20x cheaper than re-prefill": cheap_joins,
    "neither linear layer nor attention: 5% of a step at 8 agents, 15% at 256": small_rest,
    "1,024 agents on 4,096 tokens: planning and scheduling within 1 ms": planning,
    "1,024 agents: prefix and private pages, no more": pages,
    "1,024 agents: a step grows with rows, not rows x prefix": rows_not_products,
    "2,000 episodes: memory stays flat, no page is left": flat,
}


def goals(tables: dict[str, Rows]) -> list[str]:
    lines = ["| goal | measured | |", "|---|---|---|"]
    for goal, figure in GOALS.items():
        try:
            text, met = figure(tables)
        except (KeyError, StopIteration):  # its table, row or peer is not there
            text, met = NEVER
        lines.append(f"| {goal} | {text} | {met} |")
    return lines


def page(results: Path) -> str:
    """The page; pictures are written beside the tables."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(results.glob("*.json"))}
    tables = {name: data["rows"] for name, data in found.items() if isinstance(data, dict) and "rows" in data}
    if not tables:
        raise SystemExit(f"{results}: expected tables of `pytest bench/ --benchmark --results {results}`, found none")
    lines = ["# Results", ""]
    lines += [f"`pytest bench/ --benchmark --results {results.name}` and `python bench/report.py` make this page."]
    lines += ["What a GPU does stands in [RESULTS_GPU.md](RESULTS_GPU.md).", ""]
    lines += [f"Measured: {', '.join(sorted({_made(found[name]) for name in tables}))}.", ""]
    lines += [
        "## Goals",
        "",
        *goals(tables),
        "",
        "Why those that are missed are missed: [results/README.md](results/README.md).",
        "",
    ]
    for name in tables:
        lines += [f"## {name}", ""]
        for stem, draw in PICTURES.get(name, {}).items():
            if draw(found[name], results / f"{stem}.png"):
                lines += [f"![{stem}](results/{stem}.png)", ""]
        lines += [(results / f"{name}.md").read_text(encoding="utf-8")]
    return "\n".join(lines)


def _made(data: dict[str, Any]) -> str:
    return f"{data['date']}, {data['machine']}, torch {data['torch']}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("results", type=Path, nargs="?", default=BENCH / "results")
    parser.add_argument("--page", type=Path, default=BENCH / "RESULTS.md")
    arguments = parser.parse_args()
    arguments.page.write_text(page(arguments.results), encoding="utf-8")


if __name__ == "__main__":
    main()
