"""What Triton's launcher would compile is what ahead-of-time compilation is told, and the same for every batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")
OPS = ("append_kv", "copy_pages", "join_append", "merge_states", "paged_attention", "tree_attention")


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """From a process of its own: in this one kernels may be interpreted, and then nothing is compiled."""
    probe = Path(__file__).with_name("launch_probe.py")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, str(probe)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.mark.parametrize("op", OPS)
def test_what_is_launched_is_what_is_compiled_ahead_of_time(op: str, found: dict[str, Any]) -> None:
    for launches in found[op]["calls"]:
        assert launches
        for launched in launches:
            assert launched in found[op]["variants"]


@pytest.mark.parametrize("op", OPS)
def test_the_size_of_a_batch_compiles_nothing_new(op: str, found: dict[str, Any]) -> None:
    """Two dtypes, 1, 3 and 16 tokens each: two kernels, of attention two and its reductions."""
    distinct = {json.dumps(launched, sort_keys=True) for launches in found[op]["calls"] for launched in launches}
    assert len(distinct) == (4 if "attention" in op else 2)
