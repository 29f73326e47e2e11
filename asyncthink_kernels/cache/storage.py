"""The tensors that hold K and V. Which slot belongs to whom is the TreeCache's business."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .pages import require_at_least

HUGE_PAGE = 2 << 20  # bytes of a transparent huge page on x86-64
MADV_HUGEPAGE = 14
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
ALIGN = 128  # bytes; every tensor begins on a cache-line pair


@dataclass(frozen=True)
class LayerShape:
    """H kv heads, head_dim D of K and v_head_dim Dv of V of one layer."""

    kv_heads: int
    head_dim: int
    v_head_dim: int


@dataclass(frozen=True)
class Group:
    """Layers of one shape: k [Lg, P, S, H, D], v [Lg, P, S, H, Dv]; `layers[i]` is the layer at index i."""

    layers: tuple[int, ...]
    k: torch.Tensor
    v: torch.Tensor


class KVStorage:
    """K and V of all layers and pages, grouped by layer shape: one allocation for K, one for V.

    Slot s is page s // page_size at offset s % page_size, the same in every layer. The memory is not initialised:
    what no token was written to may hold anything, NaN included, and `poison()` makes it so. On the CPU the range is
    advised to use transparent huge pages (fewer TLB misses on long prefixes), where the kernel offers them.

        >>> storage = KVStorage([LayerShape(2, 8, 8)] * 3, num_pages=4, page_size=16)
        >>> storage.k(2).shape, storage.bytes_per_token
        (torch.Size([4, 16, 2, 8]), 384)

    Without layers it holds nothing. Raises ValueError on non-positive sizes or an unsupported dtype, MemoryError where
    it does not fit.
    """

    def __init__(
        self,
        layers: Sequence[LayerShape],
        num_pages: int,
        page_size: int = 16,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.num_pages = require_at_least("num_pages", num_pages, 1)
        self.page_size = require_at_least("page_size", page_size, 1)
        if dtype not in DTYPES:
            raise ValueError(f"dtype: expected one of {', '.join(map(str, DTYPES))}, got {dtype}")
        for index, shape in enumerate(layers):
            for name in ("kv_heads", "head_dim", "v_head_dim"):
                require_at_least(f"layers[{index}].{name}", getattr(shape, name), 1)
        self.layers = tuple(layers)
        self.dtype = dtype
        self.bytes_per_token = sum(s.kv_heads * (s.head_dim + s.v_head_dim) for s in layers) * dtype.itemsize
        self.device = torch.device(device)
        self.groups = self._carve(self.device)
        self._place = {layer: (g, i) for g in self.groups for i, layer in enumerate(g.layers)}

    def _carve(self, device: torch.device) -> tuple[Group, ...]:
        """The tensors of each group."""
        members: dict[LayerShape, list[int]] = {}
        if not self.layers:  # all layers of the model are recurrent
            return ()
        for layer, shape in enumerate(self.layers):
            members.setdefault(shape, []).append(layer)
        counts = {
            shape: (len(index), self.num_pages, self.page_size, shape.kv_heads) for shape, index in members.items()
        }
        try:
            # Two, because torch.compile does not update two tensors of one allocation in place by one op: it copies.
            keys = self._allocate([torch.Size((*counts[shape], shape.head_dim)) for shape in members], device)
            values = self._allocate([torch.Size((*counts[shape], shape.v_head_dim)) for shape in members], device)
        except RuntimeError as error:
            need = self.bytes_per_token * self.num_pages * self.page_size / 2**30
            raise MemoryError(f"K and V need {need:.2f} GiB on {device}; lower num_pages ({self.num_pages})") from error
        grouped = zip(members.values(), keys, values, strict=True)
        return tuple(Group(tuple(index), k, v) for index, k, v in grouped)

    def _allocate(self, shapes: Sequence[torch.Size], device: torch.device) -> list[torch.Tensor]:
        """Tensors of these shapes, cut out of one allocation."""
        step = ALIGN // self.dtype.itemsize
        sizes = [-(-shape.numel() // step) * step for shape in shapes]
        memory = torch.empty(sum(sizes), dtype=self.dtype, device=device)
        _advise_huge_pages(memory)
        pieces = zip(torch.split(memory, sizes), shapes, strict=True)
        return [piece[: shape.numel()].view(shape) for piece, shape in pieces]

    def k(self, layer: int) -> torch.Tensor:
        """K of one layer, [P, S, H, D]."""
        group, index = self._place[layer]
        return group.k[index]

    def v(self, layer: int) -> torch.Tensor:
        """V of one layer, [P, S, H, Dv]."""
        group, index = self._place[layer]
        return group.v[index]

    def poison(self) -> None:
        """Fill everything with NaN, so that reading what was never written shows."""
        for group in self.groups:
            group.k.fill_(torch.nan)
            group.v.fill_(torch.nan)


def _advise_huge_pages(memory: torch.Tensor) -> None:
    """Ask the kernel to back the tensor with huge pages: a hint, so a refusal changes nothing but speed."""
    if memory.device.type != "cpu":
        return
    begin = -(-memory.data_ptr() // HUGE_PAGE) * HUGE_PAGE
    end = (memory.data_ptr() + memory.nbytes) // HUGE_PAGE * HUGE_PAGE
    madvise = getattr(ctypes.CDLL(None), "madvise", None)
    if madvise is not None and end > begin:
        madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), MADV_HUGEPAGE)
