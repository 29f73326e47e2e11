"""`python -m bench.gpu.report`: the records of a folder to one page. Nothing on it is written by hand but what stands
beside a record as `<record>.md`, which is taken in as it is: reasons for what was missed."""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from .goals import MB, OURS, Goal, goals, ratio, share
from .record import Entry, Record, Row, records
from .spread import Spread

BENCH = Path(__file__).parents[1]
COMMAND = "bash bench/gpu.sh"
HOW = f"""\
`{COMMAND}` builds, tests and benches in under ten minutes, without a network, and writes this page.

A cell is one layer's attention of one decoding step: `heads/kv heads`, then the tree as `nodes of each level|tokens of
each node`, one new token for each leaf, bfloat16, head_dim 128, pages of 16 tokens; `~` means leaves of unequal length.
Everybody reads the same shared pages; K and V are never replicated for a peer, but SDPA, which reads no pages, gathers
what it needs within its time, and FlexAttention gets its packed copy of all unique tokens for nothing. Results are
compared with a float64 computation before anything is timed. Calls are replays of CUDA graphs between two events, in
turn; *flushed* means that L2 holds neither the call's data nor lines to be written back, *warm* that the same call ran
just before. Bytes are those that must move: K and V of every unique token, queries and outputs. Copy bandwidth is that
of the largest device-to-device copy of the same run, bytes read and bytes written. Planning on the host is shown apart.
"""


def page(found: Sequence[tuple[Path, Record]], place: Path) -> str:
    """The page for records and their paths, to lie at `place`."""
    measured = [(path, record) for path, record in found if record.on_gpu]
    parts = ["# Results on a GPU", HOW]
    if not measured:
        parts += ["**Not measured.** No GPU was at hand; nothing on this page is an estimate.", goal_table(goals(None))]
    for path, record in measured:
        parts += section(path, record, place)
    return "\n\n".join(part.strip() for part in parts) + "\n"


def section(path: Path, record: Record, place: Path) -> list[str]:
    """Everything about one record. Draws its pictures beside it."""
    link = os.path.relpath(path, place.parent)
    parts = [f"## {record.device['name']}, {record.date}", about(record, link), goal_table(goals(record))]
    notes = path.with_suffix(".md")
    if notes.exists():
        parts.append(notes.read_text(encoding="utf-8"))
    parts += pictures(path, record, place)
    if record.stages:
        parts += ["### Stages", stage_table(record)]
    parts += ["### Cells, L2 flushed", cell_table(record)]
    parts += ["### Everybody, L2 flushed, microseconds", contestant_table(record, "flushed")]
    parts += ["### Everybody, warm, microseconds", contestant_table(record, "warm")]
    parts += ["### Who did not run, and who without a graph", reason_table(record)]
    parts += ["### Planning and single calls, microseconds", planning_table(record)]
    parts += ["### Copies, and the ops that write", copy_table(record), op_table(record)]
    if record.skipped:
        parts += ["### Cells not run", table(("cell", "why"), sorted(record.skipped.items()))]
    return parts


def pictures(path: Path, record: Record, place: Path) -> list[str]:
    """Links to them, drawn beside the record; a bare machine may have nothing to draw with, and then that is said."""
    try:
        from . import plots
    except ImportError as error:
        return [f"No pictures: {error}."]
    drawn = plots.draw(record, path.with_suffix(""))
    return [f"![{picture.stem}]({os.path.relpath(picture, place.parent)})" for picture in drawn]


def about(record: Record, link: str) -> str:
    shown = record.device | record.device.get("backends", {})
    device = ", ".join(f"{name} {value}" for name, value in shown.items() if name not in ("name", "type", "backends"))
    versions = ", ".join(f"{name} {value}" for name, value in record.versions.items())
    return f"{device}.\n\n{versions}.\n\n{len(record.cells)} cells in {record.seconds:.0f} s; [all of it]({link})."


def goal_table(found: Iterable[Goal]) -> str:
    answer = {None: "not measured", True: "yes", False: "**no**"}
    return table(("goal", "measured", "met"), [(goal.text, goal.measured, answer[goal.met]) for goal in found])


def stage_table(record: Record) -> str:
    rows = [(s.name, "ok" if s.ok else "**failed**", f"{s.seconds:.0f}", s.note, s.log) for s in record.stages]
    return table(("stage", "", "seconds", "", "log"), rows)


def cell_table(record: Record) -> str:
    rows = []
    for row in record.cells:
        ours, best, part, times = row.entry(OURS), row.best_peer, share(row, record), ratio(row)
        flushed = ours.flushed if ours else None
        rate = f"{row.bytes / flushed.median / 1e9:.0f}" if flushed else "-"
        flops = f"{row.operations / flushed.median / 1e12:.1f}" if flushed else "-"
        rows.append((
            row.name, f"{row.bytes / MB:.1f}", row.chunk, ours.detail if ours else "", us(flushed), low_high(flushed),
            rate, f"{part:.0%}" if part is not None else "-", flops,
            best.name if best else "-", us(best.flushed if best else None), f"{times:.2f}" if times else "-",
        ))  # fmt: skip
    header = ("cell", "MB", "chunk", "", "us", "p20 - p80", "GB/s", "of copy", "TFLOP/s", "best peer", "us", "x")
    return table(header, rows)


def contestant_table(record: Record, kind: str) -> str:
    """Medians and p20 - p80 of all, a column each; the fastest in bold."""
    names = list(dict.fromkeys(entry.name for row in record.cells for entry in row.entries))
    rows = []
    for row in record.cells:
        spreads = [getattr(row.entry(name) or Entry(name, False), kind) for name in names]
        least = min((each.median for each in spreads if each), default=None)
        texts = [f"{us(each)} ({low_high(each)})" if each else "-" for each in spreads]
        marked = (
            f"**{text}**" if each and each.median == least else text for text, each in zip(texts, spreads, strict=True)
        )
        rows.append((row.name, *marked))
    return table(("cell", *names), rows)


def reason_table(record: Record) -> str:
    """Each reason that stands instead of a time, or that a graph was not captured, with the cells it holds for."""
    counted: Counter[tuple[str, str, str]] = Counter()
    for row in record.cells:
        for entry in row.entries:
            if entry.reason is not None:
                what = "no graph" if entry.flushed else ("**failed**" if entry.failed else "not run")
                counted[entry.name, what, entry.reason] += 1
    rows = [(name, what, reason, f"{n} of {len(record.cells)}") for (name, what, reason), n in counted.items()]
    return table(("who", "", "why", "cells"), rows) if rows else "Everybody ran in every cell, captured."


def planning_table(record: Record) -> str:
    """Host times, once a step: ours by kind, then each peer's planning; then our call without a graph."""
    kinds = list(dict.fromkeys(kind for row in record.cells for kind in row.planning))
    peers = list(dict.fromkeys(e.name for row in record.cells for e in row.entries if e.plan))
    single = list(dict.fromkeys(e.name for row in record.cells for e in row.entries if e.host))
    rows = [
        (row.name, *(us(row.planning.get(kind)) for kind in kinds), *(us(of(row, name, "plan")) for name in peers),
         *(us(of(row, name, "host")) for name in single))
        for row in record.cells
    ]  # fmt: skip
    header = [*(f"ours, {kind}" for kind in kinds), *peers, *(f"{name}, a call without a graph" for name in single)]
    return table(("cell", *header), rows)


def copy_table(record: Record) -> str:
    rows = [
        (f"{each.bytes / MB:.0f}", us(each.flushed), low_high(each.flushed), f"{each.bandwidth / 1e9:.0f}")
        for each in record.copies
    ]
    return table(("copied, MB read and written", "us", "p20 - p80", "GB/s"), rows)


def op_table(record: Record) -> str:
    rows = []
    for op in record.ops:
        rates = [f"{op.bytes / each.median / 1e9:.0f}" if each else "-" for each in (op.flushed, op.warm)]
        part = "-"
        if op.flushed and record.copy_bandwidth:
            part = f"{op.bytes / op.flushed.median / record.copy_bandwidth:.0%}"
        rows.append((op.name, op.detail, f"{op.bytes / MB:.2f}", us(op.flushed), us(op.warm), *rates, part, op.reason))
    header = ("op", "", "MB", "us flushed", "us warm", "GB/s flushed", "GB/s warm", "of copy, flushed", "")
    return table(header, rows)


def of(row: Row, name: str, kind: str) -> Spread | None:
    entry = row.entry(name)
    spread: Spread | None = getattr(entry, kind) if entry else None
    return spread


def us(spread: Spread | None) -> str:
    return f"{1e6 * spread.median:.1f}" if spread else "-"


def low_high(spread: Spread | None) -> str:
    return f"{1e6 * spread.p20:.1f} - {1e6 * spread.p80:.1f}" if spread else "-"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Markdown; a `|` in a cell is escaped, None is empty."""
    lines = [header, ["---"] * len(header), *rows]
    texts = [["" if each is None else str(each).replace("|", "\\|") for each in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in texts)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.report", description="Records to a page.")
    parser.add_argument("--results", type=Path, default=BENCH / "results", help="folder of the records")
    parser.add_argument("--page", type=Path, default=BENCH / "RESULTS_GPU.md")
    options = parser.parse_args(arguments)
    options.page.write_text(page(records(options.results), options.page), encoding="utf-8")
    print(options.page)


if __name__ == "__main__":
    main()
