"""What is bitwise the same here is so on other processors: libraries that look at the processor are told of another."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent
FILES = ("test_interpreted.py", "test_tree_attention.py", "test_paged_attention.py")
#: A kind of processor as OpenBLAS names it, and whether it has AVX-512.
KINDS = [("Haswell", False), ("Zen", False), ("Nehalem", False), ("SkylakeX", True)]


def environment(kind: str, avx512: bool) -> dict[str, str]:
    """Under it OpenBLAS takes the processor for that kind; the others leave AVX-512 alone where it has none."""
    told = {"OPENBLAS_CORETYPE": kind}
    if not avx512:
        numpy_sets = np.show_config("dicts")["SIMD Extensions"]["found"]
        told["NPY_DISABLE_CPU_FEATURES"] = " ".join(
            name for name in numpy_sets if name.startswith(("X86_V4", "AVX512"))
        )
        told |= {"DNNL_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
    return os.environ | told


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("kind", "avx512"), KINDS)
def test_bitwise_tests_pass_on_another_processor(kind: str, avx512: bool) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider"]
    command += ["-k", "bitwise or row_and_column", *(str(HERE / name) for name in FILES)]
    done = subprocess.run(command, env=environment(kind, avx512), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
