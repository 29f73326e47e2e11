"""A plan read the slow, obvious way: entry by entry, into what every row sees."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from asyncthink_kernels.cache import StepPlan


@dataclass(frozen=True)
class Seen:
    """One entry: the slots and positions of the tokens a row sees in one item, and where the item was cut."""

    slots: list[int]
    positions: list[int]
    cut: tuple[int, int, int]  # position of the item's first token, begin, end


def read_plan(plan: StepPlan, page_size: int) -> list[list[Seen]]:
    """What each row sees, by partial. Fails where the plan breaks its own rules."""
    rows = len(plan.slots)
    row_ptr = plan.row_ptr.tolist()
    entries, pages, shifts = plan.entries.tolist(), plan.pages.tolist(), plan.shifts.tolist()
    assert row_ptr[0] == 0
    assert len(row_ptr) == rows + 1
    assert row_ptr[-1] == len(entries)
    assert shifts[0] == 0
    assert len(set(shifts)) == len(shifts)
    partials: dict[int, Seen] = {}
    covered = 0
    for page_begin, offset, length, position, entry_begin, entry_end in plan.items.tolist():
        assert entry_begin == covered < entry_end
        covered = entry_end
        for row, begin, end, shift, partial in entries[entry_begin:entry_end]:
            assert 0 <= begin < end <= length
            assert row_ptr[row] <= partial < row_ptr[row + 1]
            assert partial not in partials
            places = [offset + token for token in range(begin, end)]
            slots = [pages[page_begin + place // page_size] * page_size + place % page_size for place in places]
            positions = [position + token + shifts[shift] for token in range(begin, end)]
            partials[partial] = Seen(slots, positions, (position, begin, end))
        page_end = page_begin + -(-(offset + length) // page_size)
        assert min(pages[page_begin:page_end]) >= 0, "an item runs over a page that is not there"
    assert covered == len(entries)
    return [[partials[p] for p in range(row_ptr[row], row_ptr[row + 1])] for row in range(rows)]


def assert_row_sees(parts: list[Seen], slots: list[int]) -> None:
    """A row sees exactly the tokens at `slots`, in this order, at positions 0, 1, 2, ..."""
    assert [slot for part in parts for slot in part.slots] == slots
    assert [position for part in parts for position in part.positions] == list(range(len(slots)))


def assert_same_plan(one: StepPlan, other: StepPlan) -> None:
    """Bit for bit, dtypes and shapes included."""
    for name in ("slots", "positions", "items", "pages", "entries", "row_ptr", "shifts"):
        left, right = getattr(one, name), getattr(other, name)
        assert left.dtype == right.dtype, name
        assert torch.equal(left, right), name
