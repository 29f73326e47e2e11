"""Index arithmetic that kernels of a GPU share with the tests: every piece of work is done, and once."""

from __future__ import annotations

from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

import emulated

counts = st.integers(0, 40)


@pytest.fixture(scope="module")
def arithmetic() -> ModuleType:
    module = emulated.build("arithmetic", [emulated.EMULATOR / "arithmetic.cpp"])
    if module is None:
        pytest.skip("no g++ or no pybind11 here")
    return module


@given(
    st.lists(counts, min_size=1, max_size=30), st.integers(1, 9), st.sampled_from([16, 32]), counts, st.integers(2, 9)
)
def test_tiles_cover_every_row_of_every_item_once(
    arithmetic: ModuleType, entries: list[int], group: int, rows: int, spare: int, threads: int
) -> None:
    """Whatever the capacity of `entries` beyond those in use."""
    begins = [sum(entries[:i]) for i in range(len(entries))]
    seen = [0] * len(entries)
    for tile in range(arithmetic.tile_bound(len(entries), sum(entries) + spare, group, rows)):
        item, nth = arithmetic.item_of_tile(tile, begins, group, rows, threads)
        assert nth >= 0
        if nth * rows < entries[item] * group:
            assert nth == seen[item]
            seen[item] += 1
    assert seen == [-(-each * group // rows) for each in entries]


@given(st.integers(0, 5000), st.integers(0, 6000), st.integers(1, 700))
def test_splits_are_those_that_hold_what_the_last_token_sees(
    arithmetic: ModuleType, length: int, window: int, chunk: int
) -> None:
    first, last = arithmetic.split_range(length, window, chunk)
    seen = {token // chunk for token in range(max(0, length - window) if window else 0, length)}
    assert list(range(first, last)) == sorted(seen)


@given(st.integers(0, 500), st.integers(1, 40), st.integers(1, 9), st.integers(1, 20))
def test_pieces_of_a_block_of_rows(
    arithmetic: ModuleType, first_row: int, units: int, heads: int, block_rows: int
) -> None:
    found = [arithmetic.row_piece(first_row, i, units, heads) for i in range(block_rows * units)]
    rows = range(first_row, first_row + block_rows)
    assert found == [(row // heads, row % heads, unit) for row in rows for unit in range(units)]


@given(st.integers(0, 8), st.integers(0, 8), st.sampled_from([1, 4, 8]), st.booleans())
def test_pieces_of_a_key_cover_it_and_hold_whole_pairs(
    arithmetic: ModuleType, turned: int, rest: int, n: int, interleaved: bool
) -> None:
    R, D = turned * n, 2 * turned * n + rest * n
    pieces = [arithmetic.key_piece(unit, n, R, interleaved) for unit in range(arithmetic.rope_units(D, R, n))]
    assert sorted(element for piece in pieces for element in piece) == list(range(D))
    for unit, piece in enumerate(pieces[:turned]):
        for j in range(n):
            pair = unit * n + j
            wanted = (2 * pair, 2 * pair + 1) if interleaved else (pair, pair + R)
            assert (piece[2 * j], piece[2 * j + 1]) == wanted if interleaved else (piece[j], piece[n + j]) == wanted


@given(st.integers(0, 40_000), st.integers(1, 80_000), st.integers(32_000, 240_000), st.integers(1, 4))
def test_rings_fit_and_leave_room_for_a_second_block_where_two_stages_do(
    arithmetic: ModuleType, fixed: int, stage: int, limit: int, most: int
) -> None:
    stages = arithmetic.ring_stages(fixed, stage, limit, most)
    assert fixed + stages * stage <= limit or stages == 0
    assert stages >= 1 or fixed + stage > limit
    if stages > 2:
        assert 2 * (fixed + stages * stage) <= limit
