"""A step's plan at addresses that stay: storage of fixed capacity, filled in place with one copy to the device a step.

Letters: T rows, I items, E entries, N page ids, K shifts of a plan. The buffers have room for more of each; what a plan
leaves empty is padding that every op accepts and none lets count.
"""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from .plan import StepPlan

ALIGN = 16  # bytes; every field begins on a vector load


class Capacity(NamedTuple):
    """Room for a plan: the most T, I, E, N and K. Hashable, so that what was built for one can be found again."""

    rows: int
    items: int
    entries: int
    pages: int
    shifts: int

    @classmethod
    def exact(cls, plan: StepPlan) -> Capacity:
        """The plan's own sizes."""
        return cls(len(plan.slots), len(plan.items), len(plan.entries), len(plan.pages), len(plan.shifts))

    @classmethod
    def of(cls, plan: StepPlan) -> Capacity:
        """The plan's sizes rounded up to powers of two, so that the plans of many steps share a few capacities.

        Pages are rounded by item, as a cache gives each item as many: then they make no capacities of their own.

        >>> from asyncthink_kernels.cache import TreeCache
        >>> cache = TreeCache(num_pages=8, page_size=4, chunk=8)
        >>> Capacity.of(cache.plan([(cache.root(), 3)]))
        Capacity(rows=4, items=4, entries=8, pages=8, shifts=1)
        """
        size = cls.exact(plan)
        items = max(_power_of_two(size.items), 4)
        return cls(
            rows=_power_of_two(size.rows),
            items=items,
            entries=max(_power_of_two(size.entries), 8),
            pages=items * _power_of_two(-(-size.pages // max(size.items, 1))),
            shifts=_power_of_two(size.shifts),
        )


def _power_of_two(size: int) -> int:
    """The least that is not below `size`; 1 for 0."""
    return 1 << max(size - 1, 0).bit_length()


class _Field(NamedTuple):
    """Where a field lies in the packed storage: bytes [begin, end)."""

    name: str
    dtype: torch.dtype
    on_host: npt.DTypeLike
    shape: tuple[int, ...]
    begin: int
    end: int


def _layout(c: Capacity) -> list[_Field]:
    """int64 first; entries, most of the bytes, last, so that a copy can end where those in use do."""
    fields: list[_Field] = []
    shapes: list[tuple[str, torch.dtype, tuple[int, ...]]] = [
        ("slots", torch.int64, (c.rows,)),
        ("tokens", torch.int64, (c.rows,)),
        ("positions", torch.int32, (c.rows,)),
        ("row_ptr", torch.int32, (c.rows + 1,)),
        ("shifts", torch.int32, (c.shifts,)),
        ("items", torch.int32, (c.items, 6)),
        ("pages", torch.int32, (c.pages,)),
        ("entries", torch.int32, (c.entries, 5)),
    ]
    begin = 0
    for name, dtype, shape in shapes:
        end = begin + prod(shape) * dtype.itemsize
        fields.append(_Field(name, dtype, np.int64 if dtype == torch.int64 else np.int32, shape, begin, end))
        begin = -(-end // ALIGN) * ALIGN
    return fields


class PlanBuffers:
    """One plan at a time on a device, in one allocation whose addresses never change: what a CUDA graph reads from.

    Padding: rows from T on have slot -1 (`append_kv` writes nothing), token 0, position 0 and no entries (attention
    gives 0); items from I on have length 0 and no entries; entries from E on are whatever was there before; page ids
    from N on are -1, shifts from K on 0.

    Attributes:
        capacity: the room there is.
        plan: the StepPlan of views of the storage, which stay the same: slots and positions [capacity.rows], items
            [capacity.items, 6], and so on, with the dtypes of :class:`StepPlan`; for the cache whose plan was loaded.
        tokens: [capacity.rows] int64, what was given beside the plan for each row: its token's id.

    `load` fills them with one copy to the device. For a GPU it comes from pinned memory and the host does not wait for
    it; torch's allocator of pinned memory keeps the block until the copy is done. Work that reads the buffers and the
    next `load` must be on the same stream, or the reader's part of the storage changes under it.

        >>> from asyncthink_kernels.cache import TreeCache
        >>> cache = TreeCache(num_pages=8, page_size=4, chunk=8)
        >>> plan = cache.plan([(cache.root(), 3)])
        >>> buffers = PlanBuffers(Capacity.of(plan), "cpu")
        >>> loaded = buffers.load(plan, torch.tensor([7, 8, 9]))
        >>> loaded.slots.tolist(), buffers.tokens.tolist(), loaded.row_ptr.tolist()
        ([0, 1, 2, -1], [7, 8, 9, 0], [0, 1, 2, 3, 3])
        >>> loaded.items.tolist()[:2]
        [[0, 0, 3, 0, 0, 3], [0, 0, 0, 0, 3, 3]]
    """

    def __init__(self, capacity: Capacity, device: torch.device | str) -> None:
        self.capacity = capacity
        self._layout = _layout(capacity)
        with torch.inference_mode(False):  # else they could not be filled outside of it
            self._memory = torch.zeros(self._layout[-1].end, dtype=torch.uint8, device=device)
            views = {f.name: self._memory[f.begin : f.end].view(f.dtype).view(f.shape) for f in self._layout}
        self.tokens = views.pop("tokens")
        self._views = views
        self.plan = StepPlan.unchecked(**views, num_pages=0, page_size=1, fresh=None)

    def load(self, plan: StepPlan, tokens: torch.Tensor | None = None) -> StepPlan:
        """Put a plan made on the CPU, and tokens [T] int64 where given, into the buffers; returns :attr:`plan`.

        ValueError, with nothing written, where a tensor is not on the CPU, has another dtype or does not fit.
        """
        size = self._check(plan, tokens)
        pinned = self._memory.is_cuda
        host = torch.empty(len(self._memory), dtype=torch.uint8, device="cpu", pin_memory=pinned)
        raw = host.numpy()
        room = {f.name: raw[f.begin : f.end].view(f.on_host).reshape(f.shape) for f in self._layout}
        for name in ("slots", "positions", "row_ptr", "shifts", "items", "pages", "entries"):
            field: torch.Tensor = getattr(plan, name)
            room[name][: len(field)] = field.numpy()
        room["tokens"][: size.rows] = 0 if tokens is None else tokens.numpy()

        used = plan.row_ptr[-1].item()
        room["slots"][size.rows :] = -1
        room["tokens"][size.rows :] = 0
        room["positions"][size.rows :] = 0
        room["row_ptr"][size.rows + 1 :] = used
        room["shifts"][size.shifts :] = 0
        room["items"][size.items :] = (0, 0, 0, 0, used, used)
        room["pages"][size.pages :] = -1
        end = self._layout[-1].begin + plan.entries.nbytes
        self._memory[:end].copy_(host[:end], non_blocking=True)
        if (plan.num_pages, plan.page_size) != (self.plan.num_pages, self.plan.page_size):
            self.plan = StepPlan.unchecked(
                **self._views, num_pages=plan.num_pages, page_size=plan.page_size, fresh=None
            )
        return self.plan

    def _check(self, plan: StepPlan, tokens: torch.Tensor | None) -> Capacity:
        size = Capacity.exact(plan)
        for what, count, most in zip(Capacity._fields, size, self.capacity, strict=True):
            if count > most:
                raise ValueError(f"{what}: expected at most {most}, the buffers' capacity, got {count}")
        if tokens is not None and len(tokens) != size.rows:
            raise ValueError(f"tokens: expected one for each of {size.rows} rows, got {len(tokens)}")
        for field in self._layout:
            given: torch.Tensor | None = tokens if field.name == "tokens" else getattr(plan, field.name)
            if given is not None and (given.dtype != field.dtype or given.device.type != "cpu"):
                raise ValueError(
                    f"{field.name}: expected {field.dtype} on the CPU, got {given.dtype} on {given.device}"
                )
        return size
