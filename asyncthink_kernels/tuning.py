"""What the Triton attention kernels are launched with: pure functions of shapes and architecture, nothing else.

Architectures are named as Triton's targets are: "sm_80", "sm_90", "sm_100", "gfx942", and "interpreter" for Triton's
interpreter. ``python -m asyncthink_kernels.tuning`` prints what they return.

**Rows of a tile.** An item (a chunk of a node) is seen by its entries x G query heads of a group. A program takes M of
these rows against the whole item, so an item's K and V are fetched ceil(rows / M) times, all but the first from L2: a
large M shares more, a small M wastes less arithmetic where few rows look. This is the choice between the tree and the
plain paged path: with the smallest M of the family and few rows each row group fetches for itself, as block tables
would have it. Both run the same kernel on the same chunks and are bitwise equal, and both are two launches, so sharing
costs no launch that not sharing would save.

**Bitwise independence.** M depends on how many rows look, so a row's result must not depend on M. Within a family

- the tokens of a block (N) are the same, so the online softmax takes the same steps;
- all members compile to one matrix instruction, with the warps laid along the tokens in the same way, so sums over
  tokens and over head_dim run in the same order: warpgroup MMA with all warps along the rows on sm_90, warp MMA with
  all four warps along the tokens elsewhere (along the rows where values have no more than 16 dims).
  tests/aot/test_tile_families.py reads that off the compiled kernels.

Nothing here was measured on a GPU yet; the arithmetic behind each choice is written beside it. That nothing spills was
the other half of the choice: ``python tests/aot/kernel_report.py``.
"""

from __future__ import annotations

from dataclasses import dataclass

#: For whom ahead-of-time compilation proves that no configuration spills.
ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "gfx942")

#: M of half-precision caches by architecture: narrow heads (D + Dv in powers of two at most the bound), and wide ones,
#: whose accumulators leave no registers for more rows.
#: sm_90: 64 rows are one warpgroup MMA; even with 4 of them in use it does 64 FLOP for a byte of K and V, a quarter of
#: what the tensor cores give at full bandwidth. sm_100: M >= 64 would put the accumulator, rescaled every block, into
#: tensor memory. gfx942: other M would change the MFMA shape and with it the order of sums.
_FAMILIES = {
    "sm_80": ((16, 32, 64), (16, 32)),
    "sm_90": ((64, 128), (16, 32)),
    "sm_100": ((16, 32), (16, 32)),
    "gfx942": ((32,), (32,)),
    "interpreter": ((16, 32), (16, 32)),
}
_NARROW = {"sm_80": 256, "sm_90": 384}
_WARPGROUP = 64  # rows of one warpgroup MMA
_OTHERS = ((16, 32), (16, 32))
#: Shared memory for buffers of K and V, bytes: with a tile of queries less than half of an SM's, so that two programs
#: share it. Chips with 100 KB for an SM (sm_86, sm_89, sm_120) and gfx942 (64 KB) get less.
_SHARED = {"sm_80": 64 << 10, "sm_90": 96 << 10, "sm_100": 96 << 10, "gfx942": 32 << 10}
_SHARED_OTHERS = 32 << 10


@dataclass(frozen=True)
class Tile:
    """A program's share of an item: ``rows`` M (of entries x group) against blocks of ``tokens`` N, ``warps`` and
    ``stages`` as Triton counts them."""

    rows: int
    tokens: int
    warps: int
    stages: int


def power_of_two(n: int, least: int = 1) -> int:
    """The smallest power of two that is at least ``n`` and ``least``.

    >>> power_of_two(96), power_of_two(7, 16)
    (128, 16)
    """
    return max(least, 1 << max(0, n - 1).bit_length())


def row_tiles(arch: str, itemsize: int, head_dim: int = 128, v_head_dim: int = 128) -> tuple[int, ...]:
    """The family of M for an architecture, the bytes of a K/V element and the head dims, ascending.

    float32 is multiplied without tensor cores, where sums do depend on how a tile is laid out: one M only.

    >>> row_tiles("sm_90", 2), row_tiles("sm_90", 4), row_tiles("sm_80", 2, 64, 64)
    ((64, 128), (16,), (16, 32))
    """
    if itemsize > 2:
        return (16,)
    narrow, wide = _FAMILIES.get(arch, _OTHERS)
    family = narrow if _width(head_dim, v_head_dim) <= _NARROW.get(arch, 256) else wide
    if family[0] >= _WARPGROUP:
        return family
    # Triton lays warps along the rows where a tile has at least as many rows as the values have dims, else along those.
    return tuple(m for m in family if m < power_of_two(v_head_dim, 16)) or family


def _width(head_dim: int, v_head_dim: int) -> int:
    return power_of_two(head_dim, 16) + power_of_two(v_head_dim, 16)


def _tokens(itemsize: int, width: int) -> int:
    """N: 32, where heads are narrow 64; for float32, whose products are unrolled into single operations, 16."""
    if itemsize > 2:
        return 16
    return 64 if width <= 128 else 32


def _stages(arch: str, itemsize: int, block: int) -> int:
    """Stages of the software pipeline over blocks of ``block`` bytes of K and V.

    Buffers, all but one of them in flight: 32 KiB with 3 of 16 KiB. At 3.3 TB/s and 1 us of latency an H100 needs
    25 KiB in flight for each SM, and two programs share one where there are enough. On NVIDIA Triton gives half of the
    steps between stages to the page ids that K and V wait for.
    """
    buffers = max(1, min(_SHARED.get(arch, _SHARED_OTHERS) // block, 3 if itemsize == 2 else 2))
    return 2 * buffers - 1 if arch.startswith("sm_") else buffers


def attention_tile(arch: str, itemsize: int, head_dim: int, v_head_dim: int, rows: float) -> Tile:
    """The tile for items that are seen by ``rows`` rows (entries x group) in the mean.

    M is the smallest of the family that takes the mean item in one piece, or the largest: weighted by items, which are
    of one size, the mean is the number of rows that look at the average byte. A block of K and V is mostly 16 KiB: full
    cache lines for each load, and several blocks in flight.

    >>> attention_tile("sm_90", 2, 128, 128, rows=4)
    Tile(rows=64, tokens=32, warps=4, stages=5)
    >>> attention_tile("sm_90", 2, 128, 128, rows=80).rows
    128
    """
    family = row_tiles(arch, itemsize, head_dim, v_head_dim)
    m = next((tile for tile in family if tile >= rows), family[-1])
    width = _width(head_dim, v_head_dim)
    tokens = _tokens(itemsize, width)
    warps = max(4, m // 16) if itemsize == 2 else 8
    return Tile(m, tokens, warps, _stages(arch, itemsize, tokens * width * itemsize))


def attention_tiles(arch: str, itemsize: int, head_dim: int, v_head_dim: int) -> list[Tile]:
    """Every tile that :func:`attention_tile` can return for these sizes."""
    family = row_tiles(arch, itemsize, head_dim, v_head_dim)
    return [attention_tile(arch, itemsize, head_dim, v_head_dim, rows) for rows in family]


def partials_block(v_head_dim: int) -> int:
    """How many partial results the reduction adds at a time: about 8 KiB of float32 in flight for each program.

    >>> partials_block(128), partials_block(16)
    (16, 32)
    """
    return max(4, min(32, 2048 // power_of_two(v_head_dim, 16)))


def chunk_tokens(group: int, branches: int, page_size: int, kv_heads: int) -> int:
    """Tokens C of a chunk for a cache on a GPU, a multiple of ``page_size``; fixed for the life of the cache, as where
    a node is cut may depend on nothing but the node.

    A row's partial result of an item is written and read once in float32: 8 Dv bytes a row against 2 C (D + Dv) bytes
    of K and V, in sum 2 M / C of them for M = ``group`` x ``branches`` rows and D = Dv. C >= 8 M keeps that to a
    quarter, and partial results mostly live in L2; 512 to 2,048 tokens. With fewer than 4 kv heads 256: the bytes are
    few then, and programs (chunks x kv heads) fewer than SMs.

    >>> chunk_tokens(4, 8, 16, 8), chunk_tokens(8, 32, 16, 8), chunk_tokens(8, 8, 16, 1)
    (512, 2048, 256)
    """
    if min(group, branches, page_size, kv_heads) < 1:
        raise ValueError(f"sizes must be at least 1, got {group=}, {branches=}, {page_size=}, {kv_heads=}")
    wanted = 256 if kv_heads < 4 else min(2048, max(512, power_of_two(8 * group * branches)))
    return -(-wanted // page_size) * page_size


def main() -> None:
    """Print the tiles of every architecture."""
    print("arch         bytes  D=Dv  tiles (rows x tokens, warps, stages)")
    for arch in (*ARCHITECTURES, "interpreter"):
        for itemsize in (2, 4):
            for size in (64, 128, 256):
                tiles = attention_tiles(arch, itemsize, size, size)
                shown = ", ".join(f"{t.rows}x{t.tokens} w{t.warps} s{t.stages}" for t in tiles)
                print(f"{arch:12} {itemsize:5}  {size:4}  {shown}")


if __name__ == "__main__":
    main()
