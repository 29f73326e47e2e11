"""Checks of values for Python: whatever becomes an address, or draws, is in range, or ValueError."""

from __future__ import annotations

import math
import os

import torch
from torch import Tensor

#: If 1, values that are otherwise trusted are checked too: indices on a GPU, and the plans of a cache.
ENVIRONMENT = "ASYNCTHINK_CHECK"


def everything() -> bool:
    """Whether ``ASYNCTHINK_CHECK=1`` asks to check what is otherwise trusted."""
    return os.environ.get(ENVIRONMENT) == "1"


def readable(tensor: Tensor) -> bool:
    """Whether to read values on the device of ``tensor``.

    On a GPU reading makes the host wait for every kernel launched before. So it happens only under
    ``ASYNCTHINK_CHECK=1``, and never while a graph is captured or torch's synchronisation debug mode forbids waiting.
    Meta tensors have no values.
    """
    if tensor.device.type != "cuda":
        return tensor.device.type != "meta"
    if not everything() or torch.cuda.is_current_stream_capturing():
        return False
    return torch.cuda.get_sync_debug_mode() == 0


def in_range(op: str, name: str, index: Tensor, low: int, high: int) -> None:
    """All of ``index`` in [low, high)."""
    wrong = (index < low) | (index >= high)
    if wrong.any():
        place = wrong.nonzero()[0].tolist()
        raise ValueError(f"{op}: {name} must be in [{low}, {high}), got {index[tuple(place)].item()} at {place}")


def slots(
    op: str,
    name: str,
    slots: Tensor,
    high: int,
    *,
    padding: bool = False,
    distinct: bool = False,
    apart_from: tuple[str, Tensor] | None = None,
) -> None:
    """Slots (or pages) to touch: in [0, high), all different if ``distinct``, none of them in ``apart_from``.

    With ``padding``, -1 is no slot and may stand there any number of times.
    """
    in_range(op, name, slots, -1 if padding else 0, high)
    if distinct:
        ordered = slots[slots >= 0].sort().values
        twice = ordered[1:][ordered.diff() == 0]
        if twice.numel():
            raise ValueError(f"{op}: {name} must be distinct, got {twice[0].item()} more than once")
    if apart_from is not None:
        other_name, other = apart_from
        both = slots[torch.isin(slots, other)]
        if both.numel():
            raise ValueError(
                f"{op}: {name} must have nothing in common with {other_name}, got {both[0].item()} in both"
            )


def block_tables(op: str, block_tables: Tensor, seq_lens: Tensor, *, num_pages: int, page_size: int) -> None:
    """Lengths that fit the tables; page ids in range where a length reaches them, anything elsewhere."""
    M = block_tables.shape[1]
    in_range(op, "seq_lens", seq_lens, 0, M * page_size + 1)
    used = torch.arange(M, device=seq_lens.device) * page_size < seq_lens[:, None]
    in_range(op, "block_tables", block_tables.masked_fill(~used, 0), 0, num_pages)


def drawing(op: str, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> None:
    """What the rows of `sample` are drawn with, each in its range; NaN is in none."""
    for name, values, fine, expected in (
        ("temperature", temperature, (temperature >= 0) & (temperature < math.inf), "finite and >= 0"),
        ("top_k", top_k, top_k >= 0, ">= 0 (0: all)"),
        ("top_p", top_p, (top_p > 0) & (top_p <= 1), "in (0, 1]"),
        ("min_p", min_p, (min_p >= 0) & (min_p <= 1), "in [0, 1]"),
    ):
        if not fine.all():
            row = int((~fine).nonzero()[0])
            raise ValueError(f"{op}: {name} must be {expected}, got {values[row].item()} in row {row}")
