"""A row's result may not depend on how many rows look: all tiles of a family compile to one arithmetic."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
WARPS = re.compile(r"warpsPerCTA = \[(\d+), (\d+)\]")


@pytest.fixture(
    scope="module", params=["sm_80", *(pytest.param(arch, marks=pytest.mark.slow) for arch in ("sm_90", "sm_100"))]
)
def arch(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def families(arch: str) -> dict[str, dict[str, list[str]]]:
    """From a process of its own: in this one kernels may be interpreted."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    probe = Path(__file__).with_name("tile_probe.py")
    done = subprocess.run([sys.executable, str(probe), arch], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, list[str]]] = json.loads(done.stdout)
    return found


def test_tiles_of_a_family_differ_in_rows_alone(arch: str, families: dict[str, dict[str, list[str]]]) -> None:
    """One instruction, one shape of it, as many warps along the tokens; the tokens of a block too."""
    sizes = ("64", "128", "192-dv128", "256")
    half = {family: tiles for family, tiles in families.items() if family.startswith("bf16")}
    assert sorted(half) == sorted(f"bf16-d{size}" for size in sizes)
    assert max(map(len, half.values())) == (3 if arch == "sm_80" else 2)
    for family, tiles in half.items():
        assert len({tile.partition("n")[2] for tile in tiles}) == 1, family
        kinds = {
            tile: {WARPS.sub(r"warps along tokens \2", layout) for layout in found} for tile, found in tiles.items()
        }
        assert all(kinds.values()), family
        first, *others = kinds.values()
        assert all(other == first for other in others), (family, kinds)


def test_float32_is_not_rounded_for_tensor_cores(families: dict[str, dict[str, list[str]]]) -> None:
    assert list(families["fp32-d128"].values()) == [[]]
