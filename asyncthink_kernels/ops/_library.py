"""The torch.library namespace ``asyncthink``: the ops as the compiler sees them.

``Library.define`` and ``impl`` rather than ``torch.library.custom_op``: two ops run for every layer in every step, and
this path costs a few microseconds a call less.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_LIBRARY: Any = torch.library.Library("asyncthink", "DEF")  # type: ignore[no-untyped-call]


def register(schema: str, run: Callable[..., Any], fake: Callable[..., Any]) -> Callable[..., Any]:
    """Define ``schema`` with ``run`` for every device and ``fake`` for shapes alone; returns the callable op."""
    name = schema.partition("(")[0]
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"asyncthink::{name}", fake, lib=_LIBRARY)
    op: Callable[..., Any] = getattr(torch.ops.asyncthink, name).default
    return op
