"""No kernel spills, has a stack frame or asks for more shared memory than its chip gives; the table of all is kept."""

from __future__ import annotations

import shutil
from types import ModuleType

import pytest

import cuda_resources
from asyncthink_kernels.backends import native


@pytest.fixture
def tool() -> str:
    found = cuda_resources.cuobjdump()
    if found is None or shutil.which("c++filt") is None:
        pytest.skip("no cuobjdump or no c++filt here")
    return found


def assert_as_kept(module: ModuleType, tool: str) -> set[str]:
    """Compares all that the module holds; the architectures that were compared."""
    built = cuda_resources.cells(module, tool)  # asserts that nothing spills, whoever compiled
    toolkit, kept = cuda_resources.kept()
    if module.toolkit != toolkit:
        pytest.skip("the kept table is of another CUDA toolkit")
    archs = set().union(*built.values())
    wanted = {kernel: {arch: cells[arch] for arch in cells.keys() & archs} for kernel, cells in kept.items()}
    assert built == wanted, "a kernel changed: python tests/cuda_resources.py, and look at the difference"
    return archs


def test_the_built_kernels_are_those_of_the_table(tool: str) -> None:
    module = native.load("_cuda")
    if module is None:
        pytest.skip("_cuda was not built here")
    assert_as_kept(module, tool)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_table_is_that_of_all_architectures(tool: str) -> None:
    for needed in ("nvcc", "cmake", "ninja"):
        if shutil.which(needed) is None:
            pytest.skip(f"no {needed} here")
    module = cuda_resources.build_all()
    assert assert_as_kept(module, tool) == set(cuda_resources.SHARED_LIMIT)
    text = cuda_resources.page(module.toolkit, cuda_resources.cells(module, tool))
    assert text == cuda_resources.PAGE.read_text(encoding="utf-8")
