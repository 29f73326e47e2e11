"""The goals, and what a record says of each. No torch."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from .record import Record, Row

MB = 1e6
OURS = "tree_attention"
LARGE, MIDDLE = 50 * MB, 15 * MB
LARGE_SHARE, MIDDLE_SHARE, SPEEDUP = 0.9, 0.7, 1.3


@dataclass(frozen=True)
class Goal:
    """`met` is None where nothing was measured that could tell."""

    text: str
    measured: str = ""
    met: bool | None = None


def share(row: Row, record: Record) -> float | None:
    """What the row's unique bytes over our time come to, as a part of measured copy bandwidth; L2 flushed."""
    ours, copy = row.entry(OURS), record.copy_bandwidth
    if ours is None or ours.flushed is None or copy is None:
        return None
    return row.bytes / ours.flushed.median / copy


def ratio(row: Row) -> float | None:
    """The best peer's time over ours, L2 flushed."""
    ours, best = row.entry(OURS), row.best_peer
    if ours is None or ours.flushed is None or best is None or best.flushed is None:
        return None
    return best.flushed.median / ours.flushed.median


def absent(record: Record) -> list[str]:
    """Peers that were timed in no cell."""
    timed = {entry.name: False for row in record.cells for entry in row.entries if not entry.ours}
    for row in record.cells:
        timed |= {entry.name: True for entry in row.entries if entry.name in timed and entry.flushed}
    return [name for name, was in timed.items() if not was]


def goals(record: Record | None) -> list[Goal]:
    """In the order of the page; without a record nothing is measured. Names the peers that could not be compared."""
    rows = record.cells if record else []
    shares = [(row.bytes, part, row.name) for row in rows if record and (part := share(row, record)) is not None]
    ratios = [(value, row.name) for row in rows if (value := ratio(row)) is not None]
    without = f"; without {', '.join(missing)}" if record and (missing := absent(record)) else ""
    return [
        _bandwidth(f"at least {LARGE_SHARE:.0%} of copy bandwidth in cells of 50 MB and more",
                   LARGE_SHARE, [(part, name) for size, part, name in shares if size >= LARGE]),
        _bandwidth(f"at least {MIDDLE_SHARE:.0%} in cells between 15 and 50 MB",
                   MIDDLE_SHARE, [(part, name) for size, part, name in shares if MIDDLE <= size < LARGE]),
        _never_slower("not slower than the best peer in any cell", ratios, without),
        _mean(f"{SPEEDUP}x the best peer in the geometric mean", ratios, without),
    ]  # fmt: skip


def _bandwidth(text: str, wanted: float, found: list[tuple[float, str]]) -> Goal:
    if not found:
        return Goal(text)
    least, where = min(found)
    reached = sum(part >= wanted for part, _ in found)
    middle = statistics.median(part for part, _ in found)
    measured = f"{reached} of {len(found)} cells; median {middle:.0%}, least {least:.0%} ({where})"
    return Goal(text, measured, reached == len(found))


def _never_slower(text: str, found: list[tuple[float, str]], without: str) -> Goal:
    if not found:
        return Goal(text)
    least, where = min(found)
    reached = sum(value >= 1 for value, _ in found)
    measured = f"{reached} of {len(found)} cells; least {least:.2f}x ({where}){without}"
    return Goal(text, measured, reached == len(found))


def _mean(text: str, found: list[tuple[float, str]], without: str) -> Goal:
    if not found:
        return Goal(text)
    mean = statistics.geometric_mean(value for value, _ in found)
    return Goal(text, f"{mean:.2f}x over {len(found)} cells{without}", mean >= SPEEDUP)
