"""How a program of tree_attention finds its item: every row of every item belongs to one tile."""

from __future__ import annotations

import importlib

import pytest
import torch

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402

KERNEL = importlib.import_module("asyncthink_kernels.backends.triton.tree_attention")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
find_item = KERNEL.find_item


@triton.jit
def search(items_ptr, found_ptr, num_items, GROUP: tl.constexpr, M: tl.constexpr, LEVELS: tl.constexpr):
    slot = tl.program_id(0)
    item, first_slot = find_item(items_ptr, num_items, slot, GROUP, M, LEVELS)
    tl.store(found_ptr + 2 * slot, item)
    tl.store(found_ptr + 2 * slot + 1, first_slot)


def items_of(counts: list[int]) -> torch.Tensor:
    items = torch.zeros(len(counts), 6, dtype=torch.int32)
    ends = torch.tensor(counts).cumsum(0)
    items[:, 4], items[:, 5] = ends - torch.tensor(counts), ends
    return items.to(DEVICE)


def random_counts(num_items: int, most: int, seed: int) -> list[int]:
    """Entries of each item; every third has none, as padding has."""
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, most + 1, (num_items,), generator=generator)
    return (counts * (torch.randint(0, 3, (num_items,), generator=generator) > 0)).tolist()


@pytest.mark.parametrize(
    ("counts", "group", "M"),
    [
        ([1], 1, 16),
        ([0, 0, 5], 4, 16),
        ([40, 0, 1, 7], 7, 16),
        ([3] * 256, 1, 64),
        ([1, 0] * 128 + [9], 8, 16),
        (random_counts(70, 40, 2), 16, 32),
        pytest.param(random_counts(300, 12, 1), 4, 16, marks=pytest.mark.slow),
    ],
    ids=lambda value: f"{len(value)} items" if isinstance(value, list) else None,
)
def test_tiles_cover_every_row_once(counts: list[int], group: int, M: int) -> None:
    slots = len(counts) + sum(counts) * group // M
    found = torch.full((slots, 2), -1, dtype=torch.int32, device=DEVICE)
    search[(slots,)](items_of(counts), found, len(counts), group, M, KERNEL.search_levels(len(counts)))
    covered = torch.zeros(sum(counts) * group, dtype=torch.int64)
    begin = [sum(counts[:item]) * group for item in range(len(counts))]
    for slot, (item, first_slot) in enumerate(found.tolist()):
        assert 0 <= item < len(counts) and first_slot <= slot
        rows = range((slot - first_slot) * M, min((slot - first_slot + 1) * M, counts[item] * group))
        covered[[begin[item] + row for row in rows]] += 1
    assert (covered == 1).all()


def test_levels() -> None:
    assert [KERNEL.search_levels(n) for n in (0, 1, 256, 257, 65_536, 65_537)] == [1, 1, 1, 2, 2, 3]
