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

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

BENCH = Path(__file__).parent
Rows = list[dict[str, Any]]
NEVER = ("not measured", "")


def ratios(row: dict[str, Any]) -> list[float]:
    """The peers' times over ours."""
    return [value for name, value in row.items() if name.startswith("x ") and isinstance(value, float)]


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


def twice_llama(tables: dict[str, Rows]) -> tuple[str, str]:
    ratio = _corner(tables)["x llama.cpp"]
    return f"{ratio:.2f}", _met(ratio >= 2)


def never_behind_llama(tables: dict[str, Rows]) -> tuple[str, str]:
    cells = [(r["x llama.cpp"], f"{r['dtype']} {r['branches']} x {r['prefix']}") for r in tables["generation"]]
    return f"least {min(cells)[0]:.2f} ({min(cells)[1]})", _met(min(cells)[0] >= 1)


def beyond_transformers(tables: dict[str, Rows]) -> tuple[str, str]:
    ratio = _corner(tables)["x transformers"]
    return f"{ratio:.1f}", _met(ratio >= 25)


def cheap_joins(tables: dict[str, Rows]) -> tuple[str, str]:
    cells = [
        (r["re-prefill over joins"], f"{r['join']}, {r['prefix']}") for r in tables["joins"] if r["join"] != "exact"
    ]
    return f"least {min(cells)[0]:.0f} ({min(cells)[1]})", _met(min(cells)[0] >= 20)


def _crowd(tables: dict[str, Rows]) -> dict[str, Any]:
    return next(row for row in tables["scale"] if (row["agents"], row["prefix"]) == (1024, 4096))


def planning(tables: dict[str, Rows]) -> tuple[str, str]:
    ms = _crowd(tables)["plan ms"]
    return f"{ms:.2f} ms a step (planning alone)", _met(ms <= 1)


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
    shares = {row["agents"]: row["other %"] for row in tables["profile"]}
    return f"{shares[8]:.1f}%, {shares[256]:.1f}%", _met(shares[8] <= 5 and shares[256] <= 15)


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
    "1,024 agents on 4,096 tokens: planning within 1 ms": planning,
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


def tree_attention_picture(rows: Rows, path: Path) -> None:
    """Latency over the prefix, a panel for each dtype; ours, the fastest peer and the limit."""
    dtypes = sorted({row["dtype"] for row in rows})
    figure, axes = pyplot.subplots(1, len(dtypes), figsize=(5.2 * len(dtypes), 3.8), sharey=True, squeeze=False)
    for axis, dtype in zip(axes[0], dtypes, strict=True):
        for color, branches in zip(("C0", "C1", "C2", "C3"), (1, 4, 8, 16), strict=True):
            mine = [r for r in rows if r["dtype"] == dtype and r["shape"].startswith(f"{branches} x")]
            mine.sort(key=lambda row: int(row["shape"].split(" x ")[1]))
            x, ours = [int(r["shape"].split(" x ")[1]) for r in mine], [r["median us"] / 1e3 for r in mine]
            peer = [min(ratios(r)) * ms for r, ms in zip(mine, ours, strict=True)]
            limit = [r["% of limit"] / 100 * ms for r, ms in zip(mine, ours, strict=True)]
            axis.loglog(x, ours, "o-", color=color, label=f"{branches} branches")
            axis.loglog(x, peer, "x--", color=color, alpha=0.6)
            axis.loglog(x, limit, ":", color=color, alpha=0.6)
        axis.set(title=dtype, xlabel="prefix tokens", xticks=x, xticklabels=[f"{n:,}" for n in x])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("ms a layer")
    axes[0][0].legend(fontsize=8, title="ours; dashed: fastest peer; dotted: limit", title_fontsize=7)
    _save(figure, path)


def generation_picture(rows: Rows, path: Path) -> None:
    """Tokens a second of all branches, a group of bars for each cell, a panel for each dtype."""
    dtypes = sorted({row["dtype"] for row in rows})
    figure, axes = pyplot.subplots(1, len(dtypes), figsize=(6 * len(dtypes), 3.8), squeeze=False)
    for axis, dtype in zip(axes[0], dtypes, strict=True):
        mine = [row for row in rows if row["dtype"] == dtype]
        engines = {"ours": "tokens/s"} | {n.removesuffix(" tokens/s"): n for n in mine[0] if n.endswith(" tokens/s")}
        for number, (engine, column) in enumerate(engines.items()):
            x = [cell + 0.27 * number for cell in range(len(mine))]
            bars = axis.bar(x, [row[column] for row in mine], 0.25, label=engine)
            axis.bar_label(bars, fmt="%.0f", fontsize=7)
        ticks = [f"{row['branches']} x {row['prefix']:,}" for row in mine]
        axis.set_xticks([cell + 0.27 for cell in range(len(mine))], ticks, fontsize=8)
        axis.set(title=dtype, ylabel="tokens/s, all branches", xlabel="branches x prefix")
    axes[0][0].legend()
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=110, facecolor="white")
    pyplot.close(figure)


PICTURES = {"tree_attention": tree_attention_picture, "generation": generation_picture}


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
        if name in PICTURES:
            PICTURES[name](tables[name], results / f"{name}.png")
            lines += [f"![{name}](results/{name}.png)", ""]
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
