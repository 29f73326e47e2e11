"""The CUDA C++ kernels on a CPU: csrc/cuda compiled as C++ with the emulator in tests/emulator, for the op tests.

As Triton's interpreter does for Triton's kernels, this runs the very source that a GPU runs, slowly, and finds wrong
indices, missing barriers and missing waits. What it cannot find is what hardware does on its own: real races, what a
compiler makes of the source, speed.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
EMULATOR = ROOT / "tests" / "emulator"
FOLDER = ROOT / "build" / "emulator"
_PARTS = tuple(EMULATOR / name for name in ("block.cpp", "collectives.cpp", "report.cpp"))
_FLAGS = ("-std=c++20", "-O1", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas")


@functools.cache
def module() -> ModuleType | None:
    """`_cuda` on the emulator; None without g++ or pybind11. Raises CalledProcessError if it does not compile."""
    sources = [ROOT / "csrc/bindings/cuda.cpp", *sorted((ROOT / "csrc/cuda").glob("*.cu"))]
    return build("_cuda", sources, ("-DATK_EMULATED",))


def build(name: str, sources: Sequence[Path], flags: Sequence[str] = ()) -> ModuleType | None:
    """Compiles and loads an extension module of that name; what was compiled before from the same text is loaded."""
    include = pybind11()
    if include is None or shutil.which("g++") is None:
        return None
    headers = [path for folder in ("csrc", "tests/emulator") for path in sorted((ROOT / folder).rglob("*.*h"))]
    digest = hashlib.sha256("".join((*_FLAGS, *flags)).encode())
    for path in (*sources, *headers, *_PARTS):
        digest.update(path.read_bytes())
    made = FOLDER / digest.hexdigest()[:16] / f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}"
    _compile(made, [*sources, *_PARTS], [*_FLAGS, *flags, f"-I{include}"])
    spec = importlib.util.spec_from_file_location(name, made)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def _compile(made: Path, sources: Sequence[Path], flags: Sequence[str]) -> None:
    """Makes ``made`` where it is missing, all or nothing; of several processes one compiles and the others wait."""
    made.parent.mkdir(parents=True, exist_ok=True)
    places = (EMULATOR, ROOT / "csrc", sysconfig.get_path("include"))
    with (made.parent / "lock").open("w") as lock, tempfile.TemporaryDirectory(dir=made.parent) as folder:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if made.exists():
            return

        def compile_one(source: Path) -> Path:
            target = Path(folder) / f"{source.name}.o"
            command = ["g++", *flags, *(f"-I{place}" for place in places), "-x", "c++", "-c", source, "-o", target]
            subprocess.run(command, check=True)
            return target

        with ThreadPoolExecutor(2) as pool:
            objects = list(pool.map(compile_one, sources))
        part = Path(folder) / made.name
        subprocess.run(["g++", "-shared", *objects, "-o", part], check=True)
        os.replace(part, made)


def pybind11() -> Path | None:
    """Its headers: installed, or the copy that building the package leaves."""
    if (spec := importlib.util.find_spec("pybind11")) is not None and spec.origin is not None:
        return Path(spec.origin).parent / "include"
    return next(iter(sorted((ROOT / "build").glob("native-*/pybind11-*/include"))), None)
