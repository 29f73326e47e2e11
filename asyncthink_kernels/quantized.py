"""Weights of linear layers in 8 or 4 bits: the formats, and where every integer lies in memory.

Weights [O, I] are unsigned integers u in groups of 32 inputs of one output. A group has a scale d, and integers of 4
bits may have an offset m:

==============  ============================  =========  =============================
format          weight                        bits each  blocks of GGUF with the values
==============  ============================  =========  =============================
8 bits          ``d * (u - 128)``             8.5        Q8_0
4 bits          ``d * (u - 8)``               4.5        Q4_0
4 bits, offset  ``d * u + m``                 5          Q4_1
==============  ============================  =========  =============================

d and m are float16. :func:`pack` lays integers out as the kernels read them (csrc/common/quantized_linear.h): 16
outputs at a time, for each of them group after group, four inputs of one output side by side.

Letters: I inputs, O outputs, G = ceil(I / 32) groups of an output, N = ceil(O / 16) blocks of outputs.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

GROUP, BLOCK = 32, 16
ZERO = {8: 128, 4: 8}
"""The integer that stands for 0 in formats without an offset, by their bits."""

_SHRINK = (1.0, 0.92, 0.84)  # of a group's range: a few clipped weights often cost less than wider steps
_ROWS = 512  # outputs that are quantized at a time: what lies between stays small


class QuantizedWeight(NamedTuple):
    """Weights [O, I] as :func:`pack` lays them out; a plain tuple of tensors, so that an op can take it."""

    quants: Tensor  # [N, G, B, 64] uint8; B = 8 (8 bits) or 4 (4 bits)
    scales: Tensor  # [N, G, 16] float16
    mins: Tensor | None  # [N, G, 16] float16: the offsets
    out_features: int
    in_features: int

    @property
    def bits(self) -> int:
        """Of an integer: 8 or 4."""
        return 8 if self.quants.shape[2] == 8 else 4

    @property
    def nbytes(self) -> int:
        """Of all three tensors."""
        return self.quants.nbytes + self.scales.nbytes + (0 if self.mins is None else self.mins.nbytes)

    @property
    def format(self) -> str:
        """The format in a few words.

        >>> quantize(torch.ones(16, 32), 4).format
        '4 bits with scale and offset'
        """
        return f"{self.bits} bits with scale" + ("" if self.mins is None else " and offset")

    def integers(self) -> Tensor:
        """u [O, I] uint8."""
        N, G = self.quants.shape[:2]
        if self.bits == 4:
            low, high = self.quants & 15, self.quants >> 4
            fours = torch.stack([low, high], 3).view(N, G, 8, BLOCK, 4)
        else:
            fours = self.quants.view(N, G, 8, BLOCK, 4)
        every = fours.permute(0, 3, 1, 2, 4).reshape(N * BLOCK, G * GROUP)
        return every[: self.out_features, : self.in_features]

    def per_group(self, values: Tensor) -> Tensor:
        """``scales`` or ``mins`` as [O, G]."""
        return values.transpose(1, 2).reshape(-1, values.shape[1])[: self.out_features]

    def dequantized(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weights [O, I], computed in float32 (float64 for float64).

        >>> weight = torch.tensor([[-1.0, 0.5, 1.0]])
        >>> quantize(weight, 8).dequantized().sub(weight).abs().max() < 0.005
        tensor(True)
        """
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        every = [each.repeat_interleave(GROUP, 1)[:, : self.in_features] for each in self._wide(wide)]
        u = self.integers().to(wide)
        weight = every[0] * u + every[1] if self.mins is not None else every[0] * (u - ZERO[self.bits])
        return weight.to(dtype)

    def _wide(self, dtype: torch.dtype) -> list[Tensor]:
        given = [self.scales] if self.mins is None else [self.scales, self.mins]
        return [self.per_group(each).to(dtype) for each in given]


def pack(integers: Tensor, scales: Tensor, mins: Tensor | None, bits: int) -> QuantizedWeight:
    """Integers [O, I] uint8 and float16 scales [O, G] (and mins [O, G], 4 bits alone) in the kernels' order.

    Outputs and inputs that fill up the last block and group are weights of 0. Raises ValueError for shapes or dtypes
    that do not fit, and integers that ``bits`` cannot hold.
    """
    O, I = integers.shape
    G, N = -(-I // GROUP), -(-O // BLOCK)
    if bits not in ZERO or (mins is not None and bits != 4):
        raise ValueError(f"bits: expected 8, or 4 with or without mins, got {bits}")
    for name, each in {"scales": scales, "mins": mins}.items():
        if each is not None and (each.shape != (O, G) or each.dtype != torch.float16):
            raise ValueError(f"{name}: expected float16 [{O}, {G}], got {each.dtype} {list(each.shape)}")
    if integers.dtype != torch.uint8 or (bits == 4 and integers.numel() and int(integers.max()) > 15):
        raise ValueError(f"integers: expected uint8 of {bits} bits, got {integers.dtype} up to {int(integers.max())}")
    padding = (0, G * GROUP - I, 0, N * BLOCK - O)
    every = functional.pad(integers, padding, value=0 if mins is not None else ZERO[bits])
    fours = every.view(N, BLOCK, G, 8, 4).permute(0, 2, 3, 1, 4).reshape(N, G, 8, 4 * BLOCK)
    quants = fours[:, :, ::2] | fours[:, :, 1::2] << 4 if bits == 4 else fours
    blocks = [None if each is None else _in_blocks(each, N) for each in (scales, mins)]
    assert blocks[0] is not None
    return QuantizedWeight(quants.contiguous(), blocks[0], blocks[1], O, I)


def quantize(weight: Tensor, bits: int, *, offset: bool = True) -> QuantizedWeight:
    """Weights [O, I] of any floating-point dtype in 8 bits, or in 4 bits with an ``offset`` or without.

    8 bits: ``d`` is the largest magnitude of a group / 127. 4 bits: of a few ranges that hold all or most of a group's
    numbers, the one with the least squared error, d and m by least squares for the integers it gives.

    Raises ValueError for weights that are not finite, or beyond the range of float16 scales.

    >>> weight = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    >>> errors = [quantize(weight, bits).dequantized().sub(weight).norm() / weight.norm() for bits in (8, 4)]
    >>> [round(error.item(), 3) for error in errors]
    [0.005, 0.074]
    """
    parts = [_quantized(rows.detach().float(), bits, offset) for rows in torch.split(weight, _ROWS)]
    integers, scales = (torch.cat([part[number] for part in parts]) for number in (0, 1))
    mins = torch.cat([part[2] for part in parts]) if bits == 4 and offset else None
    held = scales if mins is None else torch.cat([scales, mins])
    if not held.isfinite().all():
        raise ValueError("weight: expected finite numbers in the range of float16 scales, got others")
    return pack(integers, scales, mins, bits)


def _quantized(weight: Tensor, bits: int, offset: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(integers [O, I] uint8, scales, mins [O, G] float16) of weights [O, I] float32."""
    O, I = weight.shape
    padded = functional.pad(weight[None], (0, -I % GROUP), mode="replicate")  # so the last group is no wider
    groups = padded.view(O, -1, GROUP)
    if bits == 8:
        scales = (groups.abs().amax(2, keepdim=True) / 127).half()
        u, mins = _nearest(groups, scales.float(), 0, -127, 127) + ZERO[8], torch.zeros_like(scales)
    else:
        u, scales, mins = _four_bits(groups, offset)
    return u.to(torch.uint8).view(O, -1)[:, :I], scales[:, :, 0], mins[:, :, 0]


def _four_bits(groups: Tensor, offset: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The best of a few ranges for each group [O, G, 32]: (integers, scales, mins [O, G, 1])."""
    best: list[Tensor] = []
    for shrink in _SHRINK:
        tried = _with_offset(groups, shrink) if offset else _around_zero(groups, shrink)
        u, scales, mins = tried
        given = u if offset else u - ZERO[4]
        error = (scales.float() * given + mins.float() - groups).square().sum(2, keepdim=True)
        if not best:
            best = [error, *tried]
        else:
            better = error < best[0]
            best = [torch.where(better, new, old) for new, old in zip((error, *tried), best, strict=True)]
    return best[1], best[2], best[3]


def _with_offset(groups: Tensor, shrink: float) -> tuple[Tensor, Tensor, Tensor]:
    low, high = groups.aminmax(dim=2, keepdim=True)
    middle, half = (low + high) / 2, (high - low) / 2 * shrink
    u = _nearest(groups, half / 7.5, middle - half, 0, 15)
    mean_u, mean = u.mean(2, keepdim=True), groups.mean(2, keepdim=True)
    spread = (u - mean_u).square().sum(2, keepdim=True)
    fitted = ((u - mean_u) * (groups - mean)).sum(2, keepdim=True) / spread.clamp(min=1)
    scales = fitted.half()
    mins = (mean - scales.float() * mean_u).half()
    return _nearest(groups, scales.float(), mins.float(), 0, 15), scales, mins


def _around_zero(groups: Tensor, shrink: float) -> tuple[Tensor, Tensor, Tensor]:
    """The number of the largest magnitude becomes -8, the end that has one step more."""
    places = groups.abs().argmax(2, keepdim=True)
    q = _nearest(groups, groups.gather(2, places) * (shrink / -8), 0, -8, 7)
    scales = ((q * groups).sum(2, keepdim=True) / q.square().sum(2, keepdim=True).clamp(min=1)).half()
    return _nearest(groups, scales.float(), 0, -8, 7) + ZERO[4], scales, torch.zeros_like(scales)


def _nearest(groups: Tensor, scales: Tensor, offsets: Tensor | int, low: int, high: int) -> Tensor:
    """Integers, as floats: those in [low, high] whose weights are the nearest; 0 (or the least) where the scale is."""
    inverse = torch.where(scales == 0, 0, 1 / scales)
    return ((groups - offsets) * inverse).round_().clamp_(low, high)


def _in_blocks(values: Tensor, blocks: int) -> Tensor:
    """[O, G] -> [N, G, 16]."""
    padded = functional.pad(values, (0, 0, 0, blocks * BLOCK - values.shape[0]))
    return padded.view(blocks, BLOCK, -1).transpose(1, 2).contiguous()
