"""`python -m bench.gpu.run`: times the cells of the grid within a budget and writes `<gpu>-<date>.json`.

The file is written anew after each cell, so whatever ends a run, what it found is there; `--resume` goes on with it.
Exit code 0; 4 where one of our own ops failed or was wrong; 3 where the device was lost; 1 where it broke.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from . import copies, grid, machine, warm
from .measure import DeviceLost, Rules, measure
from .record import WRONG, Record, Row
from .timing import Clock

LOST = 3
RESULTS = Path(__file__).parents[1] / "results"


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    start = time.perf_counter()
    record = Record(machine.device(options.device), machine.versions(), datetime.date.today().isoformat())
    path = options.out / record.file_name
    if options.resume and path.exists():
        record = Record.load(path)
    record.skipped = {**pairs(options.skip)}
    before = record.seconds
    ready, failures = warm.read(options.warm) if options.warm else (None, {})
    rules = Rules(failures | pairs(options.without), ready, now_to(options.now))
    clock, dtype = Clock(torch.device(options.device)), getattr(torch, options.dtype)
    lost, small, each = False, options.device != "cuda", options.seconds / 4
    if not record.copies:
        record.copies = copies.copies(clock, copies.COPIED[:1] if small else copies.COPIED, each)
    try:
        sizes = copies.SMALL if small else copies.Sizes()
        for op in copies.measure(clock, dtype, sizes, each, rules, tuple(record.ops)):
            record.ops.append(op)
            record.save(path)
    except DeviceLost:
        lost = True
    longest = 0.0
    for cell in grid.chosen(options.cells):
        if any(row.name == cell.name for row in record.cells) or cell.name in record.skipped:
            continue
        spent = time.perf_counter() - start
        if lost or spent + longest > options.budget:
            record.skipped[cell.name] = "the device was lost" if lost else "no time left"
            continue
        try:
            row = measure(cell, clock, dtype, rules, options.seconds)
        except DeviceLost as error:
            lost = True
            record.skipped[cell.name] = f"the device was lost: {error}"
            continue
        except (torch.OutOfMemoryError, MemoryError):
            record.skipped[cell.name] = "does not fit into the device's memory"
            torch.cuda.empty_cache()
            continue
        longest = max(longest, time.perf_counter() - start - spent)
        record.cells.append(row)
        record.seconds = before + time.perf_counter() - start
        record.save(path)
        print(line(row, record), flush=True)
    record.seconds = before + time.perf_counter() - start
    record.save(path)
    print(f"{len(record.cells)} cells, {len(record.skipped)} not run: {path}", flush=True)
    if lost:
        sys.stdout.flush()
        os._exit(LOST)  # a lost device can hang the interpreter's own end
    return WRONG if failed(record) else 0


def failed(record: Record) -> bool:
    """Whether any of our own ops failed or was wrong, or none was measured."""
    ours = [entry for row in record.cells for entry in row.entries if entry.ours]
    return any(entry.failed for entry in ours) or not ours or any(op.flushed is None for op in record.ops)


def line(row: Row, record: Record) -> str:
    """One cell on one line, for the log."""
    ours, best = row.entry("tree_attention"), row.best_peer
    if ours is None or ours.flushed is None:
        return f"{row.name:40} {ours.reason if ours else 'not run'}"
    rate = row.bytes / ours.flushed.median
    share = f"{rate / record.copy_bandwidth:6.1%} of copy" if record.copy_bandwidth else ""
    text = f"{row.name:40} {1e6 * ours.flushed.median:9.1f} us {rate / 1e9:7.0f} GB/s {share}"
    if best is not None and best.flushed is not None:
        text += f"  {best.flushed.median / ours.flushed.median:5.2f}x {best.name}"
    return text


def now_to(path: Path | None) -> Callable[[str, str], None]:
    """Writes who runs in which cell, if `path` says where."""

    def now(cell: str, name: str) -> None:
        if path is not None:
            path.write_text(json.dumps([cell, name]), encoding="utf-8")

    return now


def pairs(texts: Sequence[str]) -> dict[str, str]:
    """ValueError unless each reads NAME=REASON."""
    found = {}
    for text in texts:
        name, mark, reason = text.partition("=")
        if not mark:
            raise ValueError(f"expected NAME=REASON, got {text!r}")
        found[name] = reason
    return found


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m bench.gpu.run", description=__doc__.partition("\n")[0])
    made.add_argument("--out", type=Path, default=RESULTS, help="folder for the JSON file (%(default)s)")
    made.add_argument("--cells", default="quick", help="quick, all, or a regular expression (%(default)s)")
    made.add_argument("--budget", type=float, default=300.0, help="seconds in all (%(default)s)")
    made.add_argument("--seconds", type=float, default=1.5, help="of timing for each cell (%(default)s)")
    made.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cuda", "cpu"])
    made.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    made.add_argument("--without", action="append", default=[], metavar="NAME=REASON", help="leave a contestant out")
    made.add_argument("--skip", action="append", default=[], metavar="CELL=REASON", help="leave a cell out")
    made.add_argument("--warm", type=Path, help="only those that compile whose kernels are ready, says this folder")
    made.add_argument("--now", type=Path, help="write there who runs")
    made.add_argument("--resume", action="store_true", help="keep the cells that today's file of this device has")
    return made


if __name__ == "__main__":
    gc.freeze()  # what is imported by now is not looked through again, cell after cell
    sys.exit(main())
