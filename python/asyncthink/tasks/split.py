"""The held-out split: a tenth of all puzzles, chosen by hash, so that training with any seed never sees them."""

from __future__ import annotations

import hashlib

HELD_OUT_SHARE = 10  # one puzzle in ten


def in_held_out_share(name: str) -> bool:
    """Whether the puzzle of this name is held out: the first byte of its SHA-256 is below 25.6."""
    return hashlib.sha256(name.encode()).digest()[0] * HELD_OUT_SHARE < 256
