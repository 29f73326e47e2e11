"""Checks of index values for backends in Python: whatever becomes an address is in range, or ValueError."""

from __future__ import annotations

import torch
from torch import Tensor


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
    distinct: bool = False,
    apart_from: tuple[str, Tensor] | None = None,
) -> None:
    """Slots (or pages) to touch: in [0, high), all different if ``distinct``, none of them in ``apart_from``."""
    in_range(op, name, slots, 0, high)
    if distinct:
        ordered = slots.sort().values
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

    E = entries.shape[0]
    in_range(op, "items (entry_begin)", entry_begin, 0, E + 1)
    in_range(op, "items (entry_end)", entry_end, 0, E + 1)
    covered = [e for a, b in zip(entry_begin.tolist(), entry_end.tolist(), strict=True) for e in range(a, b)]
    if sorted(covered) != list(range(E)):
        raise ValueError(f"{op}: items (entry_begin, entry_end) must cover {E} entries once, got {len(covered)}")
    item_length = torch.empty(E, dtype=torch.long, device=items.device)
    item_length[covered] = torch.repeat_interleave(length, (entry_end - entry_begin).clamp(min=0))
    row, begin, end, shift, partial = entries.long().unbind(1)
    in_range(op, "entries (row)", row, 0, num_rows)
    in_range(op, "entries (shift_index)", shift, 0, shifts.shape[0])
    outside = (begin < 0) | (begin > end) | (end > item_length)
    if outside.any():
        raise ValueError(
            f"{op}: entries (begin, end) must be inside their item, got {entries[outside][0, 1:3].tolist()}"
        )

    if row_ptr[0] != 0 or row_ptr[-1] != E or (row_ptr.diff() < 0).any():
        raise ValueError(f"{op}: row_ptr must rise from 0 to the number of entries {E}, got {row_ptr.tolist()}")
    stray = (partial < row_ptr[row]) | (partial >= row_ptr[row + 1])
    if stray.any() or (partial.sort().values.diff() == 0).any():
        raise ValueError(f"{op}: entries (partial) must number each row's entries from row_ptr[row], got others")
