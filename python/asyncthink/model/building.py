"""The parts of a :class:`asyncthink.model.decoder.Decoder`: a model examined and checked, a cache for it, its steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from asyncthink.model.attention import PagedAttention
from asyncthink.model.checks import check_kind
from asyncthink.model.compiled import CompiledModel
from asyncthink.model.fork_check import check_packed_fork
from asyncthink.model.hook import DecoderError, HookedModel
from asyncthink.model.joins import find_movable_keys, only_exact
from asyncthink.model.layers import Layers, record_layers, record_rows
from asyncthink.model.linear import packed_linears
from asyncthink.model.linear_copies import LinearCopies
from asyncthink.model.memory import chunk_for, num_pages_for, num_states_for
from asyncthink.model.packed_steps import PackedSteps
from asyncthink.model.quantized import QuantizedLinears, refuse
from asyncthink.model.recorded_rows import RecordedRows
from asyncthink.model.recurrent import StateLayout, StateStorage, has_states
from asyncthink.model.rotary import Rotary, length_dependent
from asyncthink.model.row_passes import RowPasses, check_row_fork
from asyncthink_kernels.cache import KVStorage, StatefulCache, TreeCache

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Examined:
    """A model that can be served, and how.

    ``layout`` is that of its recurrent states, which are continued ``by_token`` alone or in chunks; None: it has none.
    ``rotaries`` are how positions enter each layer's K, where cached keys can be moved. ``uncaptured`` is the reason
    why its steps cannot be captured, ``unpacked`` why there are no packed ``linears``; ``unavailable`` has the reason
    for each join that it does not support.
    """

    hooked: HookedModel
    kind: str
    layers: Layers
    layout: StateLayout | None
    by_token: bool
    rotaries: tuple[Rotary, ...] | None
    unavailable: dict[str, str]
    uncaptured: str | None
    linears: LinearCopies | None
    unpacked: str

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return next(self.hooked.model.parameters()).device

    @property
    def ends(self) -> tuple[nn.Module, nn.Module]:
        """Two modules with weights: the first and the last attention, or the embeddings."""
        model = self.hooked.model
        return self.layers.ends or (model.get_input_embeddings(), model.get_output_embeddings())  # type: ignore[operator]


def examine(
    model: nn.Module, page_size: int, say: Say, *, compiled: bool, pack: bool | None, weights: str | None, lm_head: str
) -> Examined:
    """Find a model's layers, pack or quantize its linear ones, and compare a small fork with the model's own logits.

    Arguments are those of :class:`asyncthink.model.decoder.Decoder`. DecoderError says why it cannot be served.
    """
    say("checking the model")
    stateful = has_states(model)
    kind = check_kind(model, states=stateful)
    if compiled and stateful:
        raise DecoderError(f"{kind} has recurrent layers, whose steps cannot run through torch.compile")
    hooked = HookedModel(model)
    changing = length_dependent(model)
    changes_at = None if changing is None else changing[1]
    layout = StateLayout(hooked, kind) if stateful else None
    if layout is None:
        layers = record_layers(hooked, kind, changes_at=changes_at)
    else:
        layers = record_rows(hooked, kind, layout.attention_layers, changes_at=changes_at)
    if weights is not None:
        refuse(model, f"weights={weights!r}")  # before more is computed
    say("packing linear layers")
    linears: LinearCopies | None
    linears, unpacked = packed_linears(model, pack if weights is None else False)
    hooked.linears = linears
    say("comparing with the model's own logits")
    rotaries: tuple[Rotary, ...] | None = None
    by_token = False
    if layout is None:
        check_packed_fork(hooked, layers, kind, page_size)
        rotaries, unavailable = find_movable_keys(model, kind, layers, changing)
        uncaptured = None if changing is None else f"its {changing[0]} RoPE depends on the positions"
    else:
        by_token = check_row_fork(hooked, layers, layout, kind, page_size)
        unavailable, uncaptured = only_exact(kind), "it has recurrent layers"
    if weights is not None:  # last, because the checks compare with the weights as they are
        say("quantizing linear layers")
        linears = hooked.linears = QuantizedLinears(model, weights, lm_head)
    return Examined(hooked, kind, layers, layout, by_token, rotaries, unavailable, uncaptured, linears, unpacked)


@dataclass(frozen=True, slots=True)
class Reserved:
    """The memory of a decoder: pages of K and V, and slots of recurrent states where the model has them."""

    cache: TreeCache
    storage: KVStorage
    states: StateStorage | None
    attention: PagedAttention


def reserve(
    examined: Examined,
    page_size: int,
    *,
    num_pages: int | None,
    memory_bytes: int | None,
    num_states: int | None,
    chunk: int | None,
) -> Reserved:
    """A cache for the model; arguments are those of :class:`asyncthink.model.decoder.Decoder`."""
    layers, device, layout = examined.layers, examined.device, examined.layout
    token_bytes = sum(s.kv_heads * (s.head_dim + s.v_head_dim) for s in layers.shapes) * layers.dtype.itemsize
    num_pages = num_pages_for(num_pages, memory_bytes, page_size, token_bytes, device)
    storage = KVStorage(layers.shapes, num_pages, page_size, layers.dtype, device)
    attention = PagedAttention([call.module for call in layers.calls], storage, examined.rotaries)
    chunk = chunk or chunk_for(examined.hooked.model, layers, page_size, device)
    if layout is None:
        if num_states is not None:
            raise ValueError(f"num_states: expected none, as {examined.kind} has no recurrent layers, got {num_states}")
        return Reserved(TreeCache(num_pages, page_size, chunk), storage, None, attention)
    num_states = num_states_for(num_states, layout.bytes_per_state, device)
    cache = StatefulCache(num_pages, page_size, chunk, num_states=num_states, by_token=examined.by_token)
    return Reserved(cache, storage, StateStorage(layout, num_states, device), attention)


def steps_for(
    examined: Examined,
    held: Reserved,
    unavailable: dict[str, str],
    *,
    graphs: bool | None,
    compile: bool | str,
    record: bool,
) -> tuple[PackedSteps | None, RowPasses | None]:
    """What runs the steps, one of both; in ``unavailable`` "graphs" is the reason why they cannot be captured."""
    hooked, place = examined.hooked, examined.device.type
    packed = rows = None
    record = record and place == "cpu" and not compile
    if held.states is None:
        packed = PackedSteps(hooked, held.attention, examined.kind, unavailable, record=record)
    else:
        recorded = RecordedRows(hooked, held.attention, held.states) if record else None
        rows = RowPasses(hooked, held.attention, held.states, recorded)
    if compile:
        hooked.compiled = CompiledModel(hooked.model, "inductor" if compile is True else compile)
    if graphs or (graphs is None and place == "cuda"):
        if packed is not None and examined.uncaptured is None:
            packed.capture()
        else:
            unavailable["graphs"] = f"{examined.kind} cannot be captured: {examined.uncaptured}"
    return packed, rows
