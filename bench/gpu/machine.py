"""What a run ran on."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from asyncthink_kernels import explain

PACKAGES = ("asyncthink-kernels", "torch", "triton", "transformers", "flashinfer-python", "apache-tvm-ffi", "numpy")


def device(kind: str) -> dict[str, Any]:
    """The device's name and sizes, and which backend runs which op by default."""
    backends = {row.op: row.backend for row in explain(device=kind) if row.default}
    if kind != "cuda":
        return {"type": kind, "name": f"{kind} {platform.processor() or platform.machine()}", "backends": backends}
    properties = torch.cuda.get_device_properties(0)
    return {
        "type": kind,
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_bytes": properties.total_memory,
        "l2_bytes": properties.L2_cache_size,
        "multiprocessors": properties.multi_processor_count,
        "backends": backends,
    }


def versions() -> dict[str, str]:
    """Of Python, CUDA, the driver, the packages that are installed, and the commit where there is one."""
    found = {"python": platform.python_version(), "cuda": str(torch.version.cuda)}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    found["torch"] = torch.__version__
    found["driver"] = _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    found["commit"] = _said("git", "describe", "--always", "--dirty")
    return found


def _said(*command: str) -> str:
    """What a command prints, its first line; "unknown" where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, cwd=Path(__file__).parent)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.partition("\n")[0].strip() if done.returncode == 0 and done.stdout.strip() else "unknown"
