"""One step of the model over the paged tree: append_kv, then tree_attention, in every layer with one plan.

Letters: T rows, Hq query heads, H kv heads, D head_dim of K, Dv of V, L layers, R rotated pairs, K distinct shifts.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from asyncthink.rotary import Rotary
from asyncthink_kernels import append_kv, join_append, tree_attention
from asyncthink_kernels.cache import Group, KVStorage, Scatter, StepPlan


class _Place(NamedTuple):
    """Where a layer keeps K [P,S,H,D] and V [P,S,H,Dv]."""

    layer: int
    k_cache: Tensor
    v_cache: Tensor


class _Run(NamedTuple):
    """Consecutive layers of a storage group that one join_append serves: k [L,P,S,H,D], v [L,P,S,H,Dv]."""

    k: Tensor
    v: Tensor
    inv_freq: Tensor  # [L,R] float64, zero in layers without positions
    interleaved: bool


class PagedAttention:
    """Our attention for the given attention modules, over one storage.

    ``rotaries`` [L] say how positions enter each layer; without them there are no joins other than exact.
    """

    def __init__(self, modules: Sequence[nn.Module], storage: KVStorage, rotaries: Sequence[Rotary] | None) -> None:
        self.storage = storage
        self.rotaries = None if rotaries is None else tuple(rotaries)
        self.places = {
            module: _Place(layer, storage.k(layer), storage.v(layer)) for layer, module in enumerate(modules)
        }
        self.device = storage.groups[0].k.device
        self.wide = torch.float64 if storage.dtype == torch.float64 else torch.float32
        self._runs = [] if rotaries is None else [run for group in storage.groups for run in _runs(group, rotaries)]
        self._shifts: tuple[int, ...] = (0,)
        self._turns: list[dict[str, Any]] = [{} for _ in modules]

    def step(self, plan: StepPlan) -> Step:
        """The receiver of one forward pass over ``plan``."""
        return Step(self, plan.to(self.device), self._turns_for(plan.shifts))

    def append(self, scatter: Scatter) -> None:
        """Carry out an ``append`` join: K, rotated by the shift, and V to their new slots, in all layers."""
        src, dst = scatter.src_slots.to(self.device), scatter.dst_slots.to(self.device)
        for run in self._runs:
            angles = scatter.shift * run.inv_freq
            cos, sin = angles.cos().to(self.device, self.wide), angles.sin().to(self.device, self.wide)
            join_append(run.k, run.v, src, dst, cos, sin, interleaved=run.interleaved)

    def _turns_for(self, shifts: Tensor) -> list[dict[str, Any]]:
        """Keyword arguments of tree_attention that turn queries, for each layer; made when the shifts change."""
        distinct = tuple(shifts.tolist())
        if distinct != self._shifts:
            if self.rotaries is None:
                raise ValueError(f"this model cannot read keys at shifted positions, got shifts {list(distinct)}")
            made: dict[Rotary, dict[str, Any]] = {}
            for rotary in self.rotaries:
                if rotary not in made:
                    cos, sin = rotary.tables(shifts, dtype=self.wide, device=self.device)
                    turn = {"cos": cos, "sin": sin, "interleaved": rotary.interleaved}
                    made[rotary] = turn if rotary.pairs and len(distinct) > 1 else {}
            self._turns = [made[rotary] for rotary in self.rotaries]
            self._shifts = distinct
        return self._turns


class Step:
    """Receives the attention calls of one forward pass and serves each from the paged cache."""

    def __init__(self, attention: PagedAttention, plan: StepPlan, turns: list[dict[str, Any]]) -> None:
        self.attention = attention
        self.slots = plan.slots
        self.plan_args: dict[str, Any] = plan.attention_args()
        self.turns = turns
        self.calls = 0

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, given: dict[str, Any]
    ) -> Tensor:
        """query [1,Hq,T,D], key [1,H,T,D], value [1,H,T,Dv] -> [1,T,Hq,Dv]."""
        layer, k_cache, v_cache = self.attention.places[module]
        sinks = given.get("s_aux")
        append_kv(key[0].transpose(0, 1), value[0].transpose(0, 1), k_cache, v_cache, self.slots)
        out: Tensor = tree_attention(
            query[0].transpose(0, 1),
            k_cache,
            v_cache,
            **self.plan_args,
            scale=given.get("scaling"),
            window=given.get("sliding_window"),
            softcap=given.get("softcap"),
            sinks=None if sinks is None else sinks.to(self.attention.wide),
            **self.turns[layer],
        )
        self.calls += 1
        return out[None]


def _runs(group: Group, rotaries: Sequence[Rotary]) -> Iterator[_Run]:
    """One run where all layers of the group turn the same pairs or none, as is usual; else as many as it takes."""
    own = [rotaries[layer] for layer in group.layers]
    turning = next((one for one in own if one.pairs), own[0])
    shapes = []
    for one in own:  # a layer without positions joins in, turned by 0
        turning = one if one.pairs else turning
        shapes.append((turning.pairs, turning.interleaved))
    for (pairs, interleaved), alike in itertools.groupby(range(len(own)), key=shapes.__getitem__):
        members = list(alike)
        part = slice(members[0], members[-1] + 1)
        rows = [one.inv_freq if one.pairs else torch.zeros(pairs, dtype=torch.float64) for one in own[part]]
        yield _Run(group.k[part], group.v[part], torch.stack(rows), interleaved)
