"""No kernel spills, has a stack frame or asks for more shared memory than its chip gives; the table of all is kept."""

from __future__ import annotations

import shutil

import pytest

import cuda_resources
from asyncthink_kernels.backends import native


def test_the_table_is_that_of_the_built_kernels() -> None:
    tool = cuda_resources.cuobjdump()
    module = native.load("_cuda")
    if module is None:
        pytest.skip("_cuda was not built here")
    if tool is None or shutil.which("c++filt") is None:
        pytest.skip("no cuobjdump or no c++filt here")
    built = cuda_resources.table(module, tool)  # asserts that nothing spills, whoever compiled
    kept = cuda_resources.PAGE.read_text(encoding="utf-8")
    if built.splitlines()[0] != kept.splitlines()[0]:
        pytest.skip("the kept table is of another CUDA toolkit")
    assert built == kept, "a kernel changed: python tests/cuda_resources.py, and look at the difference"
