"""The torch.library namespace ``asyncthink``: the ops as the compiler sees them.

``Library.define`` and ``impl`` rather than ``torch.library.custom_op``: two ops run for every layer in every step, and
this path costs a few microseconds a call less.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

_LIBRARY: Any = torch.library.Library("asyncthink", "DEF")  # type: ignore[no-untyped-call]
_runs: dict[str, Callable[..., Any]] = {}  # of each op; looked up in every call


def register(schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> Callable[..., Any]:
    """Define ``schema`` with ``run`` for every device and ``fake`` for shapes alone; returns the callable op."""
    name = schema.partition("(")[0]
    _LIBRARY.define(schema)
    _runs[name] = run
    _LIBRARY.impl(name, lambda *given, **options: _runs[name](*given, **options), "CompositeExplicitAutograd")
    torch.library.register_fake(f"asyncthink::{name}", fake, lib=_LIBRARY)
    op: Callable[..., Any] = getattr(torch.ops.asyncthink, name).default
    return op


@contextmanager
def wrap_ops(around: Callable[[str, Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
    """Inside the block every op runs as ``around(name, run)`` gives it back, in all threads and in compiled code too.

    For clocks and counters: what ``around`` returns must call ``run`` with what it is given.

    >>> import torch
    >>> from asyncthink_kernels import merge_states
    >>> calls = []
    >>> def noted(name, run):
    ...     return lambda *given, **options: (calls.append(name), run(*given, **options))[1]
    >>> with wrap_ops(noted):
    ...     _ = merge_states(torch.zeros(1, 2, 1, 8), torch.zeros(1, 2, 1))
    >>> calls
    ['merge_states']
    """
    before = dict(_runs)
    try:
        _runs.update({name: around(name, run) for name, run in before.items()})
        yield
    finally:
        _runs.update(before)
