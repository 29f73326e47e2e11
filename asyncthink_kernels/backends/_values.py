"""Checks of values for backends in Python: whatever becomes an address, or draws, is in range, or ValueError."""

from __future__ import annotations

import math
import os

import torch
from torch import Tensor

#: Set to 1, index values on a GPU are checked too.
ENVIRONMENT = "ASYNCTHINK_CHECK"


def wanted(tensor: Tensor) -> bool:
    """Whether to look at index values that lie where ``tensor`` does. On a GPU the look makes the host wait for every
    kernel launched before, so there it happens only under ``ASYNCTHINK_CHECK=1``; never while a graph is captured or
    torch's synchronisation debug mode forbids to wait."""
    if tensor.device.type != "cuda":
        return True
    if os.environ.get(ENVIRONMENT) != "1" or torch.cuda.is_current_stream_capturing():
        return False
    return torch.cuda.get_sync_debug_mode() == 0


def in_range(op: str, name: str, index: Tensor, low: int, high: int) -> None:
    """All of ``index`` in [low, high)."""
    wrong = (index < low) | (index >= high)
    if wrong.any():
        place = wrong.nonzero()[0].tolist()
        raise ValueError(f"{op}: {name} must be in [{low}, {high}), got {index[tuple(place)].item()} at {place}")


def slots(
    op: str,
    name: str,
    slots: Tensor,
    high: int,
    *,
    padding: bool = False,
    distinct: bool = False,
    apart_from: tuple[str, Tensor] | None = None,
) -> None:
    """Slots (or pages) to touch: in [0, high), all different if ``distinct``, none of them in ``apart_from``.

    With ``padding``, -1 is no slot and may stand there any number of times.
    """
    in_range(op, name, slots, -1 if padding else 0, high)
    if distinct:
        ordered = slots[slots >= 0].sort().values
        twice = ordered[1:][ordered.diff() == 0]
        if twice.numel():
            raise ValueError(f"{op}: {name} must be distinct, got {twice[0].item()} more than once")
    if apart_from is not None:
        other_name, other = apart_from
        both = slots[torch.isin(slots, other)]
        if both.numel():
            raise ValueError(
                f"{op}: {name} must have nothing in common with {other_name}, got {both[0].item()} in both"
            )


def block_tables(op: str, block_tables: Tensor, seq_lens: Tensor, *, num_pages: int, page_size: int) -> None:
    """Lengths that fit the tables; page ids in range where a length reaches them, anything elsewhere."""
    M = block_tables.shape[1]
    in_range(op, "seq_lens", seq_lens, 0, M * page_size + 1)
    used = torch.arange(M, device=seq_lens.device) * page_size < seq_lens[:, None]
    in_range(op, "block_tables", block_tables.masked_fill(~used, 0), 0, num_pages)


def drawing(op: str, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> None:
    """What the rows of `sample` are drawn with, each in its range; NaN is in none."""
    for name, values, fine, expected in (
        ("temperature", temperature, (temperature >= 0) & (temperature < math.inf), "finite and >= 0"),
        ("top_k", top_k, top_k >= 0, ">= 0 (0: all)"),
        ("top_p", top_p, (top_p > 0) & (top_p <= 1), "in (0, 1]"),
        ("min_p", min_p, (min_p >= 0) & (min_p <= 1), "in [0, 1]"),
    ):
        if not fine.all():
            row = int((~fine).nonzero()[0])
            raise ValueError(f"{op}: {name} must be {expected}, got {values[row].item()} in row {row}")


def plan(
    op: str,
    items: Tensor,
    pages: Tensor,
    entries: Tensor,
    row_ptr: Tensor,
    shifts: Tensor,
    *,
    num_rows: int,
    num_pages: int,
    page_size: int,
) -> None:
    """Everything in a step plan that becomes an address. Page ids count where an item's length reaches them."""
    page_begin, offset, length, _position, entry_begin, entry_end = items.long().unbind(1)
    in_range(op, "items (page_begin)", page_begin, 0, pages.shape[0] + 1)
    in_range(op, "items (offset)", offset, 0, page_size)
    in_range(op, "items (length)", length, 0, num_pages * page_size + 1)
    page_end = page_begin + (offset + length + page_size - 1) // page_size
    in_range(op, "items (page_begin + pages of its tokens)", page_end, 0, pages.shape[0] + 1)
    for first, last in zip(page_begin.tolist(), page_end.tolist(), strict=True):
        in_range(op, "pages", pages[first:last], 0, num_pages)
    if shifts[0] != 0:
        raise ValueError(f"{op}: shifts must begin with 0, got {shifts[0].item()}")

    used = int(row_ptr[-1])  # entries behind these belong to nobody and may hold anything
    if row_ptr[0] != 0 or used > entries.shape[0] or (row_ptr.diff() < 0).any():
        raise ValueError(
            f"{op}: row_ptr must rise from 0 to at most the {entries.shape[0]} entries, got {row_ptr.tolist()}"
        )
    edges = torch.cat((entry_begin, row_ptr[-1:])), torch.cat((row_ptr[:1], entry_end))
    if (edges[0] != edges[1]).any() or (entry_begin > entry_end).any():
        raise ValueError(
            f"{op}: items (entry_begin, entry_end) must cover the {used} entries up to row_ptr[T] in order, "
            f"got {items[:, 4:].tolist()}"
        )
    item_length = torch.repeat_interleave(length, entry_end - entry_begin)
    row, begin, end, shift, partial = entries[:used].long().unbind(1)
    in_range(op, "entries (row)", row, 0, num_rows)
    in_range(op, "entries (shift_index)", shift, 0, shifts.shape[0])
    outside = (begin < 0) | (begin > end) | (end > item_length)
    if outside.any():
        raise ValueError(
            f"{op}: entries (begin, end) must be inside their item, got {entries[:used][outside][0, 1:3].tolist()}"
        )
    stray = (partial < row_ptr[row]) | (partial >= row_ptr[row + 1])
    if stray.any() or (partial.sort().values.diff() == 0).any():
        raise ValueError(f"{op}: entries (partial) must number each row's entries from row_ptr[row], got others")
