"""Which backend computes which op on which device, and why.

The first backend of :data:`BACKENDS` made for the device that has the op is the default. ``use_backend("reference")``
or the environment variable ``ASYNCTHINK_BACKEND`` names another, and then nothing else is tried: a backend that cannot
run the op is an error that says why. Only an op that the named one leaves to others by design runs as it would unnamed.
Where kernels are missing and the reference has to serve, a warning says so once for each op; :func:`explain`
(``python -m asyncthink_kernels``) shows the whole table.

Beside the backends stands flash-attn, which knows one case of one op, :data:`PREFILL`, and is used where it can be.
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
OPS = (
    "append_kv",
    "tree_attention",
    "paged_attention",
    "merge_states",
    "join_append",
    "copy_pages",
    "sample",
    "quantized_linear",
    "packed_linear",
)
_MOVES = ("append_kv", "merge_states", "join_append", "copy_pages")
#: `tree_attention` of a step in which every branch is new, so that rows see rows of the step alone.
PREFILL = "prefill"
#: Names a backend for the whole process; read at every call.
ENVIRONMENT = "ASYNCTHINK_BACKEND"


@dataclass(frozen=True)
class Backend:
    """A module of kernels, the device types it is made for (None: every device torch serves), those it serves when it
    is asked for by name, the ops for which it is preferred to backends before it, and those it leaves to others."""

    name: str
    module: str
    devices: tuple[str, ...] | None
    by_name: tuple[str, ...] = ()
    first_for: tuple[str, ...] = ()
    without: tuple[str, ...] = ()


#: In order of preference. On a GPU that is Triton for attention and CUDA C++ for the ops that move or merge rows: a
#: choice by plan, not by measurement, until a GPU has measured it.
BACKENDS = (
    Backend("cpu", "asyncthink_kernels.backends.native", ("cpu",)),
    Backend(
        "triton",
        "asyncthink_kernels.backends.triton",
        ("cuda",),
        by_name=("cpu",),
        without=("sample", "quantized_linear", "packed_linear"),
    ),
    Backend(
        "cuda",
        "asyncthink_kernels.backends.cuda",
        ("cuda",),
        by_name=("cpu",),
        first_for=_MOVES,
        without=("quantized_linear", "packed_linear"),
    ),
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


_FLASH = "asyncthink_kernels.backends.flash"
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
    name = _name()
    function = _found.get((op, device, name))
    if function is None:
        backend = _default(op, device) if name is None or _leaves(name, op) else _named(name, op, device)
        function = getattr(importlib.import_module(backend.module), op)
        _found[op, device, name] = function
    return function


def find_prefill(q: Any, v: Any, sinks: Any) -> Callable[..., Any] | None:
    """flash-attn's function for a :data:`PREFILL` of q [T,Hq,D] and v [T,H,Dv] and the sinks, if any; None where it is
    for `tree_attention` to compute: flash-attn is not there, does not take these tensors, or a backend is named."""
    if _name() is not None:
        return None
    flash: Any = importlib.import_module(_FLASH)
    reason = flash.unavailable_reason(q.device.type) or flash.unsupported_reason(q, v, sinks)
    function: Callable[..., Any] | None = flash.prefill if reason is None else None
    return function


def find_native() -> Any | None:
    """The backend of the C++ kernels of the CPU, whose step programs are no ops; None: not built, or one is named."""
    if _name() is not None:
        return None
    module: Any = importlib.import_module(BACKENDS[0].module)
    return module if module.unavailable_reason("step_program", "cpu") is None else None


def backends_for(op: str, device: str) -> list[str]:
    """Names of the backends that can run ``op`` on device type ``device``, the preferred one first."""
    able = [backend for backend in _ranked(op) if _unavailable_reason(backend, op, device) is None]
    return [backend.name for backend in sorted(able, key=lambda each: not _made_for(each, device))]


def explain(op: str | None = None, device: str = "cpu") -> list[Row]:
    """For each op (or the one named) and backend: available or why not, and which one runs by default now.

    "Default" honours ``use_backend`` and ``ASYNCTHINK_BACKEND``; if the named backend cannot run, no row is default.
    The rows of ``"prefill"`` say the same of flash-attn and `tree_attention`.
    """
    if op not in (None, *OPS, PREFILL):
        raise ValueError(f"op must be one of {', '.join((*OPS, PREFILL))}, got {op!r}")
    name = _name()
    rows = []
    for each in [each for each in OPS if op in (None, each)]:
        reasons = {backend.name: _unavailable_reason(backend, each, device) for backend in BACKENDS}
        able = (b.name for b in _ranked(each) if _made_for(b, device) and reasons[b.name] is None)
        default = name if name is not None and not _leaves(name, each) else next(able, None)
        for backend in BACKENDS:
            reason = reasons[backend.name]
            text = reason if reason is not None else importlib.import_module(backend.module).note(device)
            rows.append(Row(each, backend.name, reason is None, text, reason is None and backend.name == default))
    return rows + _explain_prefill(name, device) if op in (None, PREFILL) else rows


def _explain_prefill(name: str | None, device: str) -> list[Row]:
    flash: Any = importlib.import_module(_FLASH)
    reason: str | None = flash.unavailable_reason(device)
    free = reason is None and name is None
    note = flash.note() if reason is None else reason
    if name is not None and reason is None:
        note = f"{note}; not used, as backend {name!r} is named"
    return [
        Row(PREFILL, "flash-attn", reason is None, note, free),
        Row(PREFILL, "tree_attention", True, "where flash-attn is not used", not free),
    ]


def _name() -> str | None:
    """The backend that is named now."""
    return _chosen.get() or os.environ.get(ENVIRONMENT) or None


def _leaves(name: str, op: str) -> bool:
    """Whether the backend leaves the op to others."""
    return any(backend.name == name and op in backend.without for backend in BACKENDS)


def _known(name: str) -> Backend:
    for backend in BACKENDS:
        if backend.name == name:
            return backend
    raise ValueError(f"backend must be one of {', '.join(each.name for each in BACKENDS)}, got {name!r}")


def _named(name: str, op: str, device: str) -> Backend:
    backend = _known(name)
    reason = _unavailable_reason(backend, op, device)
    if reason is not None:
        raise ValueError(f"backend {name!r} cannot run {op} on {device}: {reason}")
    return backend


def _ranked(op: str) -> list[Backend]:
    return sorted(BACKENDS, key=lambda backend: op not in backend.first_for)


def _default(op: str, device: str) -> Backend:
    missing: list[str] = []
    for backend in _ranked(op):
        if not _made_for(backend, device):
            continue
        reason = _unavailable_reason(backend, op, device)
        if reason is None:
            if missing and backend.devices is None:
                warnings.warn(
                    f"{op} on {device} runs on the slow backend {backend.name!r}: {'; '.join(missing)}",
                    RuntimeWarning,
                    stacklevel=3,
                )
            return backend
        missing.append(f"{backend.name} is not available ({reason})")
    raise ValueError(f"no backend runs {op} on {device}: {'; '.join(missing)}")


def _made_for(backend: Backend, device: str) -> bool:
    return backend.devices is None or device in backend.devices


def _unavailable_reason(backend: Backend, op: str, device: str) -> str | None:
    if not _made_for(backend, device) and device not in backend.by_name:
        return f"serves {', '.join(backend.devices or ())} only"
    try:
        module: ModuleType = importlib.import_module(backend.module)
    except (ImportError, AttributeError) as error:  # a library that is missing, or too old
        return f"{type(error).__name__}: {error}"
    reason: str | None = module.unavailable_reason(op, device)
    return reason
