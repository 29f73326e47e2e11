"""What kernels are launched with: pure functions, so a table says it all."""

from __future__ import annotations

import pytest

from asyncthink_kernels import tuning
from asyncthink_kernels.tuning import ARCHITECTURES, attention_tile, attention_tiles, chunk_tokens, row_tiles


@pytest.mark.parametrize(
    ("arch", "group", "branches", "rows"),
    [
        # (architecture, query heads of a kv head, branches on the mean item) -> M. The smallest M is the plain path:
        # what a program fetches serves no more rows than one branch needs, or than fit one instruction.
        ("sm_80", 4, 1, 16),
        ("sm_80", 4, 4, 16),
        ("sm_80", 4, 5, 32),
        ("sm_80", 7, 4, 32),
        ("sm_80", 8, 8, 64),
        ("sm_80", 8, 64, 64),
        ("sm_80", 1, 1, 16),
        ("sm_80", 32, 1, 32),
        ("sm_90", 4, 1, 64),
        ("sm_90", 4, 16, 64),
        ("sm_90", 4, 17, 128),
        ("sm_90", 8, 64, 128),
        # 8 query heads on 1 kv head, batch 8: one tile takes all 64 rows, and both paths are two launches.
        ("sm_90", 8, 8, 64),
        ("sm_100", 4, 4, 16),
        ("sm_100", 4, 64, 32),
        ("gfx942", 4, 1, 32),
        ("gfx942", 4, 64, 32),
        ("sm_86", 4, 1, 16),
        ("sm_120", 4, 64, 32),
    ],
)
def test_how_many_rows_share_a_fetch(arch: str, group: int, branches: int, rows: int) -> None:
    assert attention_tile(arch, 2, 128, 128, group * branches).rows == rows


@pytest.mark.parametrize("arch", [*ARCHITECTURES, "sm_86", "interpreter"])
@pytest.mark.parametrize("sizes", [(16, 16), (33, 17), (64, 64), (80, 80), (128, 128), (192, 128), (256, 256)])
@pytest.mark.parametrize("itemsize", [2, 4])
def test_every_tile_can_be_launched(arch: str, sizes: tuple[int, int], itemsize: int) -> None:
    tiles = attention_tiles(arch, itemsize, *sizes)
    assert [tile.rows for tile in tiles] == list(row_tiles(arch, itemsize, *sizes))
    width = sum(tuning.power_of_two(size, 16) for size in sizes)
    for tile in tiles:
        assert tile.rows >= 16 and tile.tokens >= 16 and tile.stages >= 1
        assert tile.warps in (4, 8) and tile.warps * 16 >= tile.rows
        for number in (tile.rows, tile.tokens):
            assert number & (number - 1) == 0
        if arch in ARCHITECTURES:
            buffers = (tile.stages + 1) // 2 if arch.startswith("sm_") else tile.stages
            assert 1 <= buffers <= max(1, tuning._SHARED[arch] // (tile.tokens * width * itemsize))


@pytest.mark.parametrize("arch", [*ARCHITECTURES, "interpreter"])
def test_only_rows_and_warps_follow_the_number_of_rows(arch: str) -> None:
    tiles = {attention_tile(arch, 2, 128, 128, rows) for rows in range(1, 600)}
    assert len({(tile.tokens, tile.stages) for tile in tiles}) == 1
    assert sorted(tiles, key=lambda tile: tile.rows) == attention_tiles(arch, 2, 128, 128)


@pytest.mark.parametrize("arch", [*ARCHITECTURES, "sm_86", "interpreter"])
@pytest.mark.parametrize("sizes", [(16, 16), (32, 32), (64, 64), (128, 64), (80, 48), (192, 128), (576, 32)])
def test_tiles_of_a_family_have_their_warps_along_one_axis(arch: str, sizes: tuple[int, int]) -> None:
    """Triton's rule for warp MMA: along the rows if there are at least as many as value dims."""
    family = row_tiles(arch, 2, *sizes)
    along_rows = {m >= tuning.power_of_two(sizes[1], 16) for m in family}
    assert family[0] >= 64 or len(along_rows) == 1


def test_partial_results_stay_small_against_keys_and_values() -> None:
    """2 M / C of the K/V bytes: at most a quarter, up to the largest chunk."""
    for group in (1, 4, 7, 8):
        for branches in (1, 8, 32):
            chunk = chunk_tokens(group, branches, 16, 8)
            assert chunk % 16 == 0 and 512 <= chunk <= 2048
            assert 2 * group * branches / chunk <= 0.25
    assert chunk_tokens(8, 64, 16, 1) == 256
    assert chunk_tokens(4, 8, 80, 8) == 560
    with pytest.raises(ValueError, match="kv_heads=0"):
        chunk_tokens(4, 8, 16, 0)


def test_the_table_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    tuning.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 6 * (len(ARCHITECTURES) + 1)
    assert any(line.startswith("sm_90") and "128x32 w8 s5" in line for line in lines)
