"""One step of the model over the paged tree: append_kv, then tree_attention, in every layer with one plan.

Letters: T rows, Hq query heads, H kv heads, D head_dim of K, Dv of V, L layers, R rotated pairs, K distinct shifts.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from asyncthink.model.rotary import Rotary, ShiftTables
from asyncthink_kernels import append_kv, copy_pages, join_append, tree_attention
from asyncthink_kernels.cache import Capacity, Group, KVStorage, PlanBuffers, Scatter, StepPlan
from asyncthink_kernels.dispatch import find_prefill

_S = TypeVar("_S", bound="Step")

_OPTIONS = {"scale": "scaling", "window": "sliding_window", "softcap": "softcap"}
"""Options of attention, by the keywords under which layers pass them."""


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
        self.layers = tuple(_Place(layer, storage.k(layer), storage.v(layer)) for layer in range(len(modules)))
        self._places = dict(zip(modules, self.layers, strict=True))
        self.device = storage.device
        self.accumulate_dtype = torch.float64 if storage.dtype == torch.float64 else torch.float32
        self._runs = [] if rotaries is None else [run for group in storage.groups for run in _runs(group, rotaries)]
        self._shift_tables = self.shift_tables()

    def place(self, module: nn.Module, call: int) -> _Place:
        """Where the layer that makes this call of a pass keeps K and V. Layers may share a module (zamba)."""
        return self._places[module] if len(self._places) == len(self.layers) else self.layers[call]

    def shift_tables(self) -> ShiftTables:
        """New tables for shifted positions, for all layers; a captured step has its own."""
        return ShiftTables(self.rotaries, len(self.layers), dtype=self.accumulate_dtype, device=self.device)

    def step(self, plan: StepPlan, tokens: Tensor) -> Step:
        """The receiver of one forward pass of tokens [T] over ``plan``, which go to the device in one copy."""
        return self.step_of(Step, plan, tokens)

    def step_of(self, kind: type[_S], plan: StepPlan, tokens: Tensor) -> _S:
        """:meth:`step` of this kind."""
        rotations, fresh = self._shift_tables.load(plan.shifts), plan.fresh
        if plan.slots.device != self.device:
            buffers = PlanBuffers(Capacity.exact(plan), self.device)
            plan, tokens = load(buffers, plan, tokens), buffers.tokens
        return kind(self, plan, tokens.to(self.device), rotations, fresh)

    def append(self, scatter: Scatter) -> None:
        """Carry out an ``append`` join: K, rotated by the shift, and V to their new slots, in all layers."""
        src, dst = scatter.src_slots.to(self.device), scatter.dst_slots.to(self.device)
        for run in self._runs:
            angles = scatter.shift * run.inv_freq
            cos, sin = (table.to(self.device, self.accumulate_dtype) for table in (angles.cos(), angles.sin()))
            join_append(run.k, run.v, src, dst, cos, sin, interleaved=run.interleaved)

    def copy(self, scatter: Scatter) -> None:
        """Copy the pages of slots that begin a page each, and are as many, bit by bit, in all layers."""
        size = self.storage.page_size
        src, dst = ((slots[::size] // size).to(self.device) for slots in (scatter.src_slots, scatter.dst_slots))
        for group in self.storage.groups:
            copy_pages(group.k, group.v, src, dst)


def load(buffers: PlanBuffers, plan: StepPlan, tokens: Tensor) -> StepPlan:
    """Fill the buffers with a plan and its tokens [T], which may lie on the CPU or, already, on the device."""
    if tokens.device.type == "cpu":
        return buffers.load(plan, tokens)
    loaded = buffers.load(plan)
    buffers.tokens[: len(tokens)] = tokens
    return loaded


class Step:
    """Receives the attention calls of one forward pass and serves each from the paged cache.

    tokens, positions [T] int64 on the device are what the pass is run with; ``rotations`` [L] come from
    :class:`ShiftTables`. ``fresh`` is that of the plan; where it is given, flash-attn computes the step, if it can and
    the step is not compiled.
    """

    def __init__(
        self,
        attention: PagedAttention,
        plan: StepPlan,
        tokens: Tensor,
        rotations: list[dict[str, Any]],
        fresh: tuple[int, ...] | None = None,
    ) -> None:
        self.attention = attention
        self.tokens = tokens
        self.positions = plan.positions.long()
        self.plan = plan
        self.rotations = rotations
        self.fresh: dict[str, Any] | None = None
        if fresh is not None:
            starts = torch.tensor([0, *itertools.accumulate(fresh)], dtype=torch.int32, device=attention.device)
            self.fresh = {"starts": starts, "longest": max(fresh)}
        self.calls = 0

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, given: dict[str, Any]
    ) -> Tensor:
        """query [B,Hq,n,D], key [B,H,n,D], value [B,H,n,Dv] -> [B,n,Hq,Dv], where B times n are the T rows."""
        layer, k_cache, v_cache = self.attention.place(module, self.calls)
        sinks = given.get("s_aux")
        B, _, n, _ = query.shape
        q, k, v = (tensor.transpose(1, 2).flatten(0, 1) for tensor in (query, key, value))
        options: dict[str, Any] = {name: given.get(key) for name, key in _OPTIONS.items()}
        append_kv(k, v, k_cache, v_cache, self.plan.slots)
        flash = None if torch.compiler.is_compiling() else self._flash(q, v, sinks)
        if flash is not None:
            out: Tensor = flash(q, k, v, **options)
        else:
            sinks = None if sinks is None else sinks.to(self.attention.accumulate_dtype)
            out = tree_attention(q, k_cache, v_cache, self.plan, **options, sinks=sinks, **self.rotations[layer])
        self.calls += 1
        return out.view(B, n, *out.shape[1:])

    def _flash(self, q: Tensor, v: Tensor, sinks: Tensor | None) -> Callable[..., Tensor] | None:
        """flash-attn for a layer of this step, where it can compute it."""
        if self.fresh is None:
            return None
        prefill = find_prefill(q, v, sinks)
        return None if prefill is None else functools.partial(prefill, **self.fresh)


def _runs(group: Group, rotaries: Sequence[Rotary]) -> Iterator[_Run]:
    """One run where all layers of the group rotate the same pairs or none, as is usual; else as many as it takes."""
    own = [rotaries[layer] for layer in group.layers]
    rotating = next((rotary for rotary in own if rotary.pairs), own[0])
    shapes = []
    for rotary in own:  # a layer without positions joins in, rotated by 0
        rotating = rotary if rotary.pairs else rotating
        shapes.append((rotating.pairs, rotating.interleaved))
    for (pairs, interleaved), alike in itertools.groupby(range(len(own)), key=shapes.__getitem__):
        members = list(alike)
        part = slice(members[0], members[-1] + 1)
        still = torch.zeros(pairs, dtype=torch.float64, device="cpu")
        rows = [rotary.inv_freq if rotary.pairs else still for rotary in own[part]]
        yield _Run(group.k[part], group.v[part], torch.stack(rows), interleaved)
