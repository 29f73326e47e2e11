"""Work measured without a clock."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType


def calls_made(act: Callable[[], object]) -> int:
    """Python and C functions that `act` calls."""
    count = 0

    def note(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        act()
    finally:
        sys.setprofile(None)
    return count
