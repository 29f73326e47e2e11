"""Names of the parts of a step, as torch.profiler shows them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch.autograd import profiler

PREFIX = "asyncthink: "
_NOTHING: AbstractContextManager[Any] = nullcontext()


def label(part: str) -> AbstractContextManager[Any]:
    """Mark a block as ``asyncthink: part`` for a profiler.

    A record_function goes through torch's dispatcher twice even when no profiler runs; the flag that torch keeps for
    this purpose costs a look.
    """
    return profiler.record_function(f"{PREFIX}{part}") if profiler._is_profiler_enabled else _NOTHING
