"""Rotary positions: which rotation moves a cached K from one position to another, found by running the model.

A layer has rotary positions when its K of one hidden state at positions p and p + d differ by the rotation R(d), which
rotates each pair of coordinates by the angle ``d * inv_freq[r]``. Then a K computed at p can be rotated for use at
p + d. The pairs are (r, r + R) ("half-split") or (2r, 2r + 1) ("interleaved"), of the first 2R coordinates. Su et al.,
RoFormer, arXiv 2104.09864.

Letters: L layers, R rotated pairs, K distinct shifts, n probed positions, H kv heads, D head_dim.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_LENGTH_DEPENDENT = ("dynamic", "longrope")
_TOLERANCE = {torch.float64: 1e-5, torch.float32: 2e-3, torch.float16: 1e-2, torch.bfloat16: 4e-2}


class NotRotaryError(ValueError):
    """This model's cached keys cannot be moved. The message is the reason."""


@dataclass(frozen=True, eq=False)
class Rotary:
    """How positions enter the K of a layer. inv_freq [R] float64, in radians per position; R = 0: not at all."""

    inv_freq: Tensor
    interleaved: bool = False

    @property
    def pairs(self) -> int:
        """R."""
        return self.inv_freq.shape[0]

    def tables(self, shifts: Tensor, *, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
        """cos and sin of ``shifts[j] * inv_freq[r]``: shifts [K] -> two [K,R] of ``dtype``, computed in float64."""
        angles = shifts.to("cpu", torch.float64)[:, None] * self.inv_freq
        return angles.cos().to(device, dtype), angles.sin().to(device, dtype)

    def rotate(self, keys: Tensor, shifts: Tensor) -> Tensor:
        """keys [n,H,D] float64 moved by shifts [n]: the keys of the same tokens at positions that much later."""
        R = self.pairs
        cos, sin = self.tables(shifts, dtype=torch.float64, device=keys.device)
        cos, sin = cos[:, None, :], sin[:, None, :]
        first = slice(0, 2 * R, 2) if self.interleaved else slice(0, R)
        second = slice(1, 2 * R, 2) if self.interleaved else slice(R, 2 * R)
        moved = keys.clone()
        moved[..., first] = keys[..., first] * cos - keys[..., second] * sin
        moved[..., second] = keys[..., second] * cos + keys[..., first] * sin
        return moved


class ShiftTables:
    """For each layer, the arguments of tree_attention that rotate queries for keys read at shifted positions.

    Tables are computed when a plan's shifts change. They keep their addresses while K is the same, because captured
    steps read them there. ``rotaries`` [L] is None for a model that cannot read keys at shifted positions.
    """

    def __init__(
        self, rotaries: Sequence[Rotary] | None, layers: int, *, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._rotaries, self._dtype, self._device = rotaries, dtype, device
        self._shifts: tuple[int, ...] = (0,)
        self._tables: dict[Rotary, tuple[Tensor, Tensor]] = {}
        self._arguments: list[dict[str, Any]] = [{} for _ in range(layers)]

    def load(self, shifts: Tensor) -> list[dict[str, Any]]:
        """Keyword arguments [L] for a plan's shifts [K] int32 on the CPU; empty where nothing is shifted."""
        distinct = tuple(shifts.tolist())
        if distinct != self._shifts:
            if self._rotaries is None:
                raise ValueError(f"this model cannot read keys at shifted positions, got shifts {list(distinct)}")
            rotating = dict.fromkeys(self._rotaries) if len(distinct) > 1 else {}
            arguments = {rotary: self._table(rotary, shifts) for rotary in rotating if rotary.pairs}
            self._arguments = [arguments.get(rotary, {}) for rotary in self._rotaries]
            self._shifts = distinct
        return self._arguments

    def _table(self, rotary: Rotary, shifts: Tensor) -> dict[str, Any]:
        with torch.inference_mode(False):  # inference tensors could not be overwritten outside of inference mode
            new = rotary.tables(shifts, dtype=self._dtype, device=self._device)
            cos, sin = self._tables.setdefault(rotary, new)
            if cos.shape != new[0].shape:
                cos, sin = self._tables[rotary] = new
            cos.copy_(new[0])
            sin.copy_(new[1])
        return {"cos": cos, "sin": sin, "interleaved": rotary.interleaved}


def length_dependent(model: nn.Module) -> tuple[str, int] | None:
    """RoPE whose frequencies change with the length of the text: (its type, the longest text before they change)."""
    module: Any
    changing: list[tuple[str, int]] = []
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        for layer_type, kind in kinds.items() if isinstance(kinds, dict) else ((None, kinds),):
            if isinstance(kind, str) and any(part in kind for part in _LENGTH_DEPENDENT):
                parameters = module.config.rope_parameters
                parameters = parameters if layer_type is None else parameters[layer_type]
                trained = module.config.max_position_embeddings
                length = parameters["original_max_position_embeddings"] if kind == "longrope" else trained
                changing.append((kind, length))
    return min(changing, key=lambda change: change[1], default=None)


def find_rotaries(
    model: nn.Module, keys: Sequence[Tensor], values: Sequence[Tensor], positions: Tensor
) -> tuple[Rotary, ...]:
    """How positions enter each layer, verified on K and V that the model computed.

    ``keys[l]`` [n,H,D] and ``values[l]`` [n,H,Dv] are those of layer l for the same token, alone in its context, at
    ``positions`` [n]. Candidates are the model's own frequency tables in both pairings, and no rotation. A layer gets
    the one that maps its K at positions[0] to its K at all others; NotRotaryError where none does.
    """
    candidates = [Rotary(torch.empty(0, dtype=torch.float64, device="cpu")), *_candidates(model)]
    shifts = positions.to("cpu", torch.float64) - positions[0].item()
    rotaries = []
    for layer, (key, value) in enumerate(zip(keys, values, strict=True)):
        tolerance = _TOLERANCE[key.dtype]
        if _difference(value.double().cpu(), value[:1].double().cpu()) > tolerance:
            raise NotRotaryError(f"in layer {layer} V, too, depends on the position (positions are not rotary)")
        actual = key.double().cpu()
        fitting = [rotary for rotary in candidates if 2 * rotary.pairs <= key.shape[-1]]
        errors = [_difference(actual, rotary.rotate(actual[:1].expand_as(actual), shifts)) for rotary in fitting]
        best = min(range(len(fitting)), key=errors.__getitem__)
        if errors[best] > tolerance:
            raise NotRotaryError(
                f"in layer {layer} a K rotated by the shift is not the K of the shifted position "
                f"(relative difference {errors[best]:.1e}, expected at most {tolerance:.0e})"
            )
        rotaries.append(fitting[best])
    return tuple(rotaries)


def _candidates(model: nn.Module) -> Iterator[Rotary]:
    seen: list[Tensor] = []
    for name, buffer in model.named_buffers():
        if not name.endswith("inv_freq") or buffer.ndim != 1:
            continue
        inv_freq = buffer.detach().to("cpu", torch.float64)
        if not any(torch.equal(inv_freq, other) for other in seen):
            seen.append(inv_freq)
            # Some models rotate in the other direction (NanoChat).
            yield from (Rotary(sign * inv_freq, pairing) for sign in (1, -1) for pairing in (False, True))


def _difference(actual: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest value; both [n,...] float64."""
    scale = actual.abs().max().clamp(min=torch.finfo(torch.float64).tiny)
    return ((actual - expected).abs().max() / scale).item()
