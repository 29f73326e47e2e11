"""The targets of op tests: each backend there is, on each device it serves, with each instruction set of this chip."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch

import emulated
from asyncthink_kernels import dispatch, use_backend
from asyncthink_kernels.backends import cuda

try:
    from asyncthink_kernels import _cpu
except ImportError:
    _cpu = None

DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)


@dataclass(frozen=True)
class Target:
    """A backend on a device; ``isa`` is the instruction set to force, where there is a choice."""

    backend: str
    device: str
    isa: str | None = None

    def __str__(self) -> str:
        return "-".join(part for part in (self.backend, self.device, self.isa) if part)


def targets(op: str) -> list[Target]:
    """Where ``op`` can run here; without a GPU the CUDA C++ kernels run on an emulator."""
    if not torch.cuda.is_available() and not hasattr(cuda._cuda, "emulated"):
        cuda._cuda = emulated.module()
    found = []
    for device in DEVICES:
        for backend in dispatch.backends_for(op, device):
            isas = _cpu.usable_isas() if backend == "cpu" and _cpu else [None]
            found += [Target(backend, device, isa) for isa in isas]
    return found


@contextlib.contextmanager
def forced(target: Target) -> Iterator[None]:
    """Ops run on the target, with its instruction set; no warning is let through."""
    before = _cpu.isa() if target.isa else None
    if target.isa:
        _cpu.set_isa(target.isa)
    try:
        with use_backend(target.backend), warnings.catch_warnings():
            warnings.simplefilter("error")
            if str(target) == "triton-cpu":  # numpy, which interprets, speaks up at every NaN
                warnings.filterwarnings("ignore", "(invalid value|overflow|divide by zero|All-NaN slice) encountered")
            yield
    finally:
        if before:
            _cpu.set_isa(before)
