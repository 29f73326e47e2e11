"""What each CUDA C++ kernel takes of a GPU: `python tests/cuda_resources.py` writes csrc/cuda/resources.txt anew.

Read from the built module with cuobjdump, so nothing is compiled for it and no GPU is needed. A change of a kernel
shows in that file, and thus in review; tests/test_cuda_resources.py compares.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from types import ModuleType

PAGE = Path(__file__).resolve().parents[1] / "csrc" / "cuda" / "resources.txt"
#: Bytes of shared memory that a block may ask for (CUDA C++ Programming Guide, "Technical Specifications").
SHARED_LIMIT = {"sm_80": 163 << 10, "sm_86": 99 << 10, "sm_89": 99 << 10, "sm_90a": 227 << 10, "sm_100": 227 << 10}
_USAGE = re.compile(r"Function (\w+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
_SHAPE = re.compile(r"attend_item<(float|bf16|f16)-(\d+)-(\d+)-(\d)>")


def cuobjdump() -> str | None:
    """CUDA's own, or the one that Triton brings."""
    found = shutil.which("cuobjdump")
    if found is None:
        try:
            import triton

            found = triton.knobs.nvidia.cuobjdump.path
        except (ImportError, AttributeError, RuntimeError):
            return None
    return found


def usage(module: ModuleType, tool: str) -> dict[str, dict[str, tuple[int, int, int]]]:
    """kernel -> architecture -> registers of a thread, static shared bytes, bytes of stack and local memory."""
    assert module.__file__ is not None
    listing = subprocess.run([tool, "-res-usage", module.__file__], capture_output=True, text=True, check=True).stdout
    listing = subprocess.run(["c++filt"], input=listing, capture_output=True, text=True, check=True).stdout
    kernels: dict[str, dict[str, tuple[int, int, int]]] = {}
    arch = ""
    lines = iter(listing.splitlines())
    for line in lines:
        if found := re.match(r"arch = (sm_\w+)", line):
            arch = found[1]
        if found := re.match(r"\s*Function (.+):$", line):
            numbers = dict(re.findall(r"(\w+):(\d+)", next(lines)))
            waste = int(numbers["STACK"]) + int(numbers["LOCAL"])
            kernels.setdefault(_short(found[1]), {})[arch] = (int(numbers["REG"]), int(numbers["SHARED"]), waste)
    return kernels


def _short(name: str) -> str:
    """``attend_item<bf16-128-128-2>`` for the demangled name of that kernel."""
    name = name.partition("(atk::cuda")[0].removeprefix("void ")
    name = re.sub(r"atk::cuda::|atk::|\(anonymous namespace\)::", "", name)
    name = re.sub(r"AttendShape<(\w+), (\d+), (\d+), (\d+)>", r"\1-\2-\3-\4", name)
    return name.replace(" ", "")


def table(module: ModuleType, tool: str) -> str:
    """A line a kernel, a cell an architecture: registers, and KiB of shared memory with the stages of the rings."""
    kernels = usage(module, tool)
    archs = list(SHARED_LIMIT)
    rows = [["kernel", *archs]]
    for kernel in sorted(kernels):
        cells = []
        for arch in archs:
            registers, static, waste = kernels[kernel][arch]
            assert waste == 0, f"{kernel} on {arch}: {waste} bytes of stack or local memory"
            cells.append(f"{registers}{_shared(module, kernel, SHARED_LIMIT[arch], static)}")
        rows.append([kernel, *cells])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    head = f"toolkit {module.toolkit}: registers of a thread, KiB of shared memory of a block (stages of its rings)"
    return "\n".join([head, *lines, ""])


def _shared(module: ModuleType, kernel: str, limit: int, static: int) -> str:
    found = _SHAPE.fullmatch(kernel)
    reserved = 1024  # what the system keeps of each block from sm_90 on is counted as static
    static = max(static - reserved, 0)
    if found is None:
        return f", {static / 1024:.1f}" if static else ""
    dtype, head_dim, v_head_dim, fragments = found.groups()
    rows = 16.0 * int(fragments)
    stages, size = module.attention_shared(4 if dtype == "float" else 2, int(head_dim), int(v_head_dim), rows, limit)
    assert stages >= 1 and size + static <= limit, f"{kernel} needs {size} bytes of shared memory, there are {limit}"
    return f", {(size + static) / 1024:.1f} ({stages})"


if __name__ == "__main__":
    from asyncthink_kernels.backends import native

    tool, built = cuobjdump(), native.load("_cuda")
    if tool is None or built is None:
        raise SystemExit("needs cuobjdump and a built _cuda")
    PAGE.write_text(table(built, tool), encoding="utf-8")
    print(PAGE.read_text(encoding="utf-8"), end="")
