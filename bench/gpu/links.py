"""CUDA's libraries under the names that linkers look for, and its headers where compilers look.

A machine may have `libcuda.so.1` and `libcudart.so.13` alone, and curand's headers within torch's own packages. Whoever
compiles at run time (FlashInfer: `-lcuda -lcudart`, CUTLASS's curand_kernel.h) fails there without them.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable
from pathlib import Path

LIBRARIES = ("libcuda.so", "libcudart.so")
HEADERS = "curand*.h"
SYSTEM = ("/usr/local/nvidia", "/usr/local/cuda", "/usr/local/cuda/targets/x86_64-linux", "/usr")
FOLDERS = ("lib64", "lib", "lib/x86_64-linux-gnu", "lib64/stubs", "compat", "include")


def places() -> list[Path]:
    """Folders that may hold them, the system's before those of torch's packages."""
    torch = importlib.util.find_spec("torch")
    packages = Path(torch.origin).parents[1] if torch and torch.origin else Path("/nowhere")
    roots = [*map(Path, SYSTEM), *sorted(packages.glob("nvidia/*"))]
    return [root / folder for root in roots for folder in FOLDERS]


def link(folder: Path, among: Iterable[Path]) -> dict[str, str]:
    """Make `folder` with what is found, the first of each name; the environment in which compilers find it."""
    folder.mkdir(parents=True, exist_ok=True)
    for place in among:
        for name in LIBRARIES:
            _link(folder / name, sorted(place.glob(f"{name}*")))
        for header in sorted(place.glob(HEADERS)):
            _link(folder / header.name, [header])
    paths = {name: [os.environ.get(name), str(folder)] for name in ("LIBRARY_PATH", "CPATH")}
    return {name: os.pathsep.join(filter(None, values)) for name, values in paths.items()}


def _link(name: Path, targets: list[Path]) -> None:
    if not name.exists() and targets:
        name.symlink_to(targets[0])
