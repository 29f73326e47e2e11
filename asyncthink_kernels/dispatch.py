"""Which backend computes which op on which device, and why.

The first backend of :data:`BACKENDS` that serves the device and has the op is the default. ``use_backend("reference")``
or the environment variable ``ASYNCTHINK_BACKEND`` names another, and then nothing else is tried: a backend that cannot
run the op is an error that says why. When the preferred backend itself is missing, a warning says so once for each op;
:func:`explain` (``python -m asyncthink_kernels``) shows the whole table.
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import ModuleType
from typing import Any

#: Every op, in the order in which tables show them.
OPS = ("append_kv", "tree_attention", "paged_attention", "merge_states", "join_append", "copy_pages")
#: Names a backend for the whole process; read at every call.
ENVIRONMENT = "ASYNCTHINK_BACKEND"


@dataclass(frozen=True)
class Backend:
    """A module of kernels and the device types it serves (None: every device torch serves)."""

    name: str
    module: str
    devices: tuple[str, ...] | None


#: In order of preference.
BACKENDS = (
    Backend("cpu", "asyncthink_kernels.backends.native", ("cpu",)),
    Backend("cuda", "asyncthink_kernels.backends.native", ("cuda",)),
    Backend("reference", "asyncthink_kernels.backends.reference", None),
)


@dataclass(frozen=True)
class Row:
    """One line of :func:`explain`: ``reason`` says why the op is not available, or what runs when it is."""

    op: str
    backend: str
    available: bool
    reason: str
    default: bool


_chosen: ContextVar[str | None] = ContextVar("asyncthink_backend", default=None)
_found: dict[tuple[str, str, str | None], Callable[..., Any]] = {}


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run every op on backend ``name`` inside the block (this thread or task only); raises ValueError if unknown.

    >>> from asyncthink_kernels import use_backend
    >>> with use_backend("reference"):
    ...     pass
    """
    _known(name)
    token = _chosen.set(name)
    try:
        yield
    finally:
        _chosen.reset(token)


def find(op: str, device: str) -> Callable[..., Any]:
    """The function that computes ``op`` on device type ``device`` now. Raises ValueError when the chosen one cannot."""
    name = _chosen.get() or os.environ.get(ENVIRONMENT) or None
    function = _found.get((op, device, name))
    if function is None:
        backend = _default(op, device) if name is None else _named(name, op, device)
        function = getattr(importlib.import_module(backend.module), op)
        _found[op, device, name] = function
    return function


def backends_for(op: str, device: str) -> list[str]:
    """Names of the backends that can run ``op`` on device type ``device``, the preferred one first."""
    return [backend.name for backend in BACKENDS if _why_not(backend, op, device) is None]


def explain(op: str | None = None, device: str = "cpu") -> list[Row]:
    """For each op (or the one named) and backend: available or why not, and which one runs by default now.

    "Default" honours ``use_backend`` and ``ASYNCTHINK_BACKEND``; if the named backend cannot run, no row is default.
    """
    if op is not None and op not in OPS:
        raise ValueError(f"op must be one of {', '.join(OPS)}, got {op!r}")
    name = _chosen.get() or os.environ.get(ENVIRONMENT) or None
    rows = []
    for each in OPS if op is None else (op,):
        reasons = {backend.name: _why_not(backend, each, device) for backend in BACKENDS}
        default = name or next((key for key, reason in reasons.items() if reason is None), None)
        for backend in BACKENDS:
            reason = reasons[backend.name]
            text = reason if reason is not None else importlib.import_module(backend.module).note(device)
            rows.append(Row(each, backend.name, reason is None, text, reason is None and backend.name == default))
    return rows


def _known(name: str) -> Backend:
    for backend in BACKENDS:
        if backend.name == name:
            return backend
    raise ValueError(f"backend must be one of {', '.join(each.name for each in BACKENDS)}, got {name!r}")


def _named(name: str, op: str, device: str) -> Backend:
    backend = _known(name)
    reason = _why_not(backend, op, device)
    if reason is not None:
        raise ValueError(f"backend {name!r} cannot run {op} on {device}: {reason}")
    return backend


def _default(op: str, device: str) -> Backend:
    missing: list[str] = []
    for backend in BACKENDS:
        reason = _why_not(backend, op, device)
        if reason is None:
            if missing:
                warnings.warn(
                    f"{op} on {device} runs on the slow backend {backend.name!r}: {'; '.join(missing)}",
                    RuntimeWarning,
                    stacklevel=3,
                )
            return backend
        if _serves(backend, device):
            missing.append(f"{backend.name} is not available ({reason})")
    raise ValueError(f"no backend runs {op} on {device}: {'; '.join(missing)}")


def _serves(backend: Backend, device: str) -> bool:
    return backend.devices is None or device in backend.devices


def _why_not(backend: Backend, op: str, device: str) -> str | None:
    if not _serves(backend, device):
        return f"serves {', '.join(backend.devices or ())} only"
    try:
        module: ModuleType = importlib.import_module(backend.module)
    except ImportError as error:
        return f"{type(error).__name__}: {error}"
    reason: str | None = module.why_not(op, device)
    return reason
