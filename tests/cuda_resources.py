"""What each CUDA C++ kernel takes of a GPU: `python tests/cuda_resources.py` writes csrc/cuda/resources.txt anew.

Read with cuobjdump from a module built for all architectures; no GPU is needed. A change of a kernel shows in that
file, and thus in review; tests/native/test_cuda_resources.py compares.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import emulated

PAGE = Path(__file__).resolve().parents[1] / "csrc" / "cuda" / "resources.txt"
#: Bytes of shared memory that a block may ask for (CUDA C++ Programming Guide, "Technical Specifications").
SHARED_LIMIT = {"sm_80": 163 << 10, "sm_86": 99 << 10, "sm_89": 99 << 10, "sm_90a": 227 << 10, "sm_100": 227 << 10}
Cells = dict[str, dict[str, str]]
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


def cells(module: ModuleType, tool: str) -> Cells:
    """kernel -> architecture -> registers, and KiB of shared memory with the stages of the rings, as text.

    Of the architectures in :data:`SHARED_LIMIT` that the module holds. Raises AssertionError where a kernel spills, has
    a stack frame or needs more shared memory than there is.
    """
    made: Cells = {}
    for kernel, archs in usage(module, tool).items():
        made[kernel] = {}
        for arch, (registers, static, waste) in archs.items():
            assert waste == 0, f"{kernel} on {arch}: {waste} bytes of stack or local memory"
            if arch in SHARED_LIMIT:
                made[kernel][arch] = f"{registers}{_shared(module, kernel, SHARED_LIMIT[arch], static)}"
    return made


def page(toolkit: int, made: Cells) -> str:
    """The text of :data:`PAGE`: a line a kernel, a column an architecture."""
    rows = [["kernel", *SHARED_LIMIT]]
    rows += [[kernel, *(made[kernel][arch] for arch in SHARED_LIMIT)] for kernel in sorted(made)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    head = f"toolkit {toolkit}: registers of a thread, KiB of shared memory of a block (stages of its rings)"
    return "\n".join([head, *lines, ""])


def kept() -> tuple[int, Cells]:
    """The toolkit and the cells of :data:`PAGE`."""
    head, names, *rows = PAGE.read_text(encoding="utf-8").splitlines()
    columns = re.split(r"  +", names)[1:]
    split = [re.split(r"  +", row) for row in rows]
    return int(head.split()[1].rstrip(":")), {row[0]: dict(zip(columns, row[1:], strict=True)) for row in split}


def build_all() -> ModuleType:
    """``_cuda`` for all architectures, in a build folder of its own. Raises CalledProcessError if it does not build."""
    root = PAGE.parents[2]
    folder = root / "build" / "all-archs"
    headers = emulated.pybind11()
    assert headers is not None, "needs pybind11"
    options = ["-DATK_CUDA=ON", "-DCMAKE_CUDA_ARCHITECTURES=", f"-Dpybind11_DIR={headers.parent}/share/cmake/pybind11"]
    options += [f"-DPython_EXECUTABLE={sys.executable}", "--fresh"]
    for command in (["-S", root, "-B", folder, "-G", "Ninja", *options], ["--build", folder, "--target", "_cuda"]):
        subprocess.run(["cmake", *map(str, command)], check=True)
    (built,) = folder.glob("_cuda.*.so")
    spec = importlib.util.spec_from_file_location("all_archs._cuda", built)  # pybind11 keeps one module a name
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
    found = cuobjdump()
    if found is None:
        raise SystemExit("needs cuobjdump")
    module = build_all()
    PAGE.write_text(page(module.toolkit, cells(module, found)), encoding="utf-8")
    print(PAGE.read_text(encoding="utf-8"), end="")
