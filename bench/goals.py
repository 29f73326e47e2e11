"""The goals of the pages of results: what the rows of the tables say of each."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping
from typing import Any

from pictures import Rows, ratios

NEVER = ("not measured", "")
Figure = Callable[[dict[str, Rows]], tuple[str, str]]
"""Tables by name -> what was measured, and whether that meets the goal. Raises KeyError where a table is missing."""


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


def beyond_transformers_with_states(tables: dict[str, Rows]) -> tuple[str, str]:
    cells = [r for r in tables["hybrid"] if (r["branches"], r["prefix"]) == (8, 4096)]
    ratio = min(row["x transformers"] for row in cells)
    return ", ".join(f"{row['dtype']} {row['x transformers']:.2f}" for row in cells), _met(ratio >= 5)


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


LARGE, MIDDLE = 50, 15  # MB


def _share_of_copy(rows: Rows, least: float, wanted: float, most: float = math.inf) -> tuple[str, str]:
    """How many cells of [least, most) MB reach ``wanted`` percent of copy bandwidth."""
    found = [(row["% of limit"], row["shape"]) for row in rows if least <= row["MB"] < most]
    reached, middle = sum(part >= wanted for part, _ in found), statistics.median(part for part, _ in found)
    text = f"{reached} of {len(found)} cells; median {middle:.0f}%, least {min(found)[0]:.0f}% ({min(found)[1]})"
    return text, _met(reached == len(found))


def large_cells(tables: dict[str, Rows]) -> tuple[str, str]:
    return _share_of_copy(tables["tree_grid"], LARGE, 90)


def middle_cells(tables: dict[str, Rows]) -> tuple[str, str]:
    return _share_of_copy(tables["tree_grid"], MIDDLE, 70, LARGE)


def never_behind_a_peer(tables: dict[str, Rows]) -> tuple[str, str]:
    cells = [(min(ratios(row)), row["shape"]) for row in tables["tree_grid"] if ratios(row)]
    reached = sum(ratio >= 1 for ratio, _ in cells)
    return f"{reached} of {len(cells)} cells; least {min(cells)[0]:.2f}x ({min(cells)[1]})", _met(reached == len(cells))


def mean_of_the_grid(tables: dict[str, Rows]) -> tuple[str, str]:
    fastest = [min(ratios(row)) for row in tables["tree_grid"] if ratios(row)]
    mean = statistics.geometric_mean(fastest)
    return f"{mean:.2f}x over {len(fastest)} cells", _met(mean >= 1.3)


def _met(yes: bool) -> str:
    return "met" if yes else "missed"


GOALS: dict[str, Figure] = {
    "tree attention: 2x the fastest peer in the geometric mean": mean_of_tree_attention,
    "tree attention: no cell slower than the fastest peer": worst_of_tree_attention,
    "tree attention: within 1.5x of the limit above 1 ms": limit_of_tree_attention,
    "decoding: 2x llama.cpp at 8 branches x 4,096 (bfloat16)": twice_llama,
    "decoding: not slower than llama.cpp anywhere": never_behind_llama,
    "decoding: 25x transformers at 8 branches x 4,096 (bfloat16)": beyond_transformers,
    "recurrent layers: 5x transformers at 8 branches x 4,096": beyond_transformers_with_states,
    "joins by append and link 20x cheaper than re-prefill": cheap_joins,
    "neither linear layer nor attention: 5% of a step at 8 agents, 15% at 256": small_rest,
    "1,024 agents on 4,096 tokens: planning and scheduling within 1 ms": planning,
    "1,024 agents: prefix and private pages, no more": pages,
    "1,024 agents: a step grows with rows, not rows x prefix": rows_not_products,
    "2,000 episodes: memory stays flat, no page is left": flat,
}


GPU_GOALS: dict[str, Figure] = {
    "at least 90% of copy bandwidth in cells of 50 MB and more": large_cells,
    "at least 70% in cells between 15 and 50 MB": middle_cells,
    "not slower than the best peer in any cell": never_behind_a_peer,
    "1.3x the best peer in the geometric mean": mean_of_the_grid,
}


def goals(tables: dict[str, Rows], wanted: Mapping[str, Figure]) -> list[str]:
    lines = ["| goal | measured | |", "|---|---|---|"]
    for goal, figure in wanted.items():
        try:
            text, met = figure(tables)
        except (KeyError, StopIteration, ValueError):  # its table, row or peer is not there
            text, met = NEVER
        lines.append(f"| {goal} | {text} | {met} |")
    return lines
