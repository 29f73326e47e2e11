"""Recurrent states of a model's layers, through the Cache interface of transformers: what a layer asks for, it gets.

A layer of linear attention, a state-space layer or a convolution keeps a few tensors of fixed size for each row of a
batch. Here they lie in slots, one for each branch; a pass lends the slots of its rows to the model.

Letters: S slots, B rows of a pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import (
    CacheLayerMixin,
    DummyLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionLayer,
)

from asyncthink.model.checks import one_line, probe_tokens, text_config
from asyncthink.model.hook import DecoderError, HookedModel

_PROBE = 5  # tokens; more than one, because a single one may take another path
_SERVED: tuple[type, ...] = (
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    DummyLayer,
)


class _NewKeys(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """An attention layer that sees the K and V of the pass alone: those before are in the paged cache."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        return key_states, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return -1


class _NewKeysAndStates(LinearAttentionLayer, _NewKeys):  # type: ignore[no-untyped-call,override]
    """A layer with both, one beside the other."""

    is_compileable = False

    def __init__(self, number_of_states: int) -> None:
        _NewKeys.__init__(self)  # type: ignore[no-untyped-call]
        LinearAttentionLayer.__init__(self, number_of_states=number_of_states)


class _PassCache(Cache):
    """The cache of one pass: to the model it looks as if nothing came before, but for the states."""

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return query_length, 0


class StateKey(NamedTuple):
    """One tensor of a layer: its "conv" or "recurrent" state of this number."""

    layer: int
    kind: str
    number: int


class StateLayout:
    """What the layers of a model keep: the kind of each layer, and the tensors of those that have a state.

    ``attention_layers`` is how many of them call attention. Raises DecoderError for a layer that keeps something else,
    and for a model whose states do not go through transformers' cache.
    """

    def __init__(self, hooked: HookedModel, kind: str) -> None:
        layers = DynamicCache(config=text_config(hooked.model)).layers
        wrong = sorted({type(layer).__name__ for layer in layers if type(layer) not in _SERVED})
        if wrong:
            raise DecoderError(
                f"{kind} has layers that are neither full nor sliding attention nor recurrent: {', '.join(wrong)}"
            )
        self._layers = [(type(layer), getattr(layer, "number_of_states", 0)) for layer in layers]
        self.attention_layers = sum(isinstance(layer, DynamicLayer) for layer in layers)
        self.shapes = self._probe(hooked, kind)
        self.bytes_per_state = sum(shape.numel() * dtype.itemsize for shape, dtype in self.shapes.values())

    def cache(self) -> Cache:
        """An empty cache for one pass."""
        layers: list[Any] = []
        for made, states in self._layers:
            if made is DummyLayer:
                layers.append(DummyLayer())  # type: ignore[no-untyped-call]
            elif made is LinearAttentionLayer:
                layers.append(LinearAttentionLayer(number_of_states=states))
            else:
                layers.append(_NewKeysAndStates(states) if states else _NewKeys())  # type: ignore[no-untyped-call]
        return _PassCache(layers=layers)

    def _probe(self, hooked: HookedModel, kind: str) -> dict[StateKey, tuple[torch.Size, torch.dtype]]:
        """Run the model on a few tokens -> the shape of each tensor for one row."""
        device = next(hooked.model.parameters()).device
        tokens = torch.tensor(probe_tokens(hooked.model, _PROBE), device=device)[None]
        cache = self.cache()
        with hooked.patched("eager"):
            try:
                hooked.call_rows(cache, tokens, torch.arange(_PROBE, device=device)[None], None)
            except Exception as error:
                raise DecoderError(
                    f"{kind} has recurrent layers that do not run on transformers' own cache: {one_line(error)}"
                ) from error
        shapes = {key: (state.shape[1:], state.dtype) for key, state in states(cache).items() if state.shape[0] == 1}
        if len(shapes) != len(states(cache)) or not shapes:
            raise DecoderError(
                f"{kind} has recurrent layers whose states do not go through transformers' cache, one for each row"
            )
        return shapes


def has_states(model: Any) -> bool:
    """Whether transformers' cache for this model keeps recurrent states in some layer."""
    try:
        layers = DynamicCache(config=text_config(model)).layers
    except (AttributeError, KeyError, TypeError, ValueError):  # a config that transformers' own cache does not serve
        return False
    return any(isinstance(layer, LinearAttentionLayer) for layer in layers)


def states(cache: Cache) -> dict[StateKey, Tensor]:
    """The tensors that the layers of a cache keep, [B, ...]."""
    kept: dict[StateKey, Tensor] = {}
    for number, layer in enumerate(cache.layers):
        if isinstance(layer, LinearAttentionLayer):
            for kind, tensors in (("conv", layer.conv_states), ("recurrent", layer.recurrent_states)):
                kept |= {StateKey(number, kind, index): held for index, held in tensors.items() if held is not None}
    return kept


class StateStorage:
    """The states in S slots: a tensor [S, ...] for each tensor of a layer. Not initialised, as K and V are not.

    A pass over neighbouring slots works in them; otherwise its states are gathered before and scattered behind it.
    """

    def __init__(self, layout: StateLayout, num_states: int, device: torch.device) -> None:
        self.layout, self.num_states, self.device = layout, num_states, device
        self.bytes_per_state = layout.bytes_per_state
        try:
            self._slots = {
                key: torch.empty((num_states, *shape), dtype=dtype, device=device)
                for key, (shape, dtype) in layout.shapes.items()
            }
        except RuntimeError as error:
            need = num_states * self.bytes_per_state / 2**30
            raise MemoryError(f"states need {need:.2f} GiB on {device}; lower num_states ({num_states})") from error

    def poison(self) -> None:
        """Fill everything with NaN, so that reading what was never written shows."""
        for tensor in self._slots.values():
            tensor.fill_(torch.nan)

    def copy(self, copies: Sequence[tuple[int, int]]) -> None:
        """Copy states (source, destination), one behind the other."""
        for source, destination in copies:
            for tensor in self._slots.values():
                tensor[destination] = tensor[source]

    @property
    def tensors(self) -> Mapping[StateKey, Tensor]:
        """All slots [S, ...] of each tensor."""
        return self._slots

    def rows(self, slots: Sequence[int]) -> dict[StateKey, Tensor]:
        """The states in these slots: in their place where the slots have no gap, else copied."""
        return {key: self._rows(tensor, slots) for key, tensor in self._slots.items()}

    def lend(self, slots: Sequence[int], *, fresh: bool, copied: bool = False) -> tuple[Cache, dict[StateKey, Tensor]]:
        """A cache for a pass over these slots, and the states that lie in it; none where the rows are empty so far.

        ``copied``: the pass works on copies, whatever the slots.
        """
        cache = self.layout.cache()
        if fresh:
            return cache, {}
        lent = self.rows(slots)
        if copied:
            lent = {key: rows.clone() for key, rows in lent.items()}
        for (number, kind, index), rows in lent.items():
            layer: Any = cache.layers[number]
            getattr(layer, f"{kind}_states")[index] = rows
            getattr(layer, f"is_{kind}_states_initialized")[index] = True
            layer.has_previous_state[index] = True
            if kind == "conv":
                layer.conv_kernel_size[index] = rows.shape[-1]
            layer.dtype, layer.device = rows.dtype, rows.device
        return cache, lent

    def take_back(self, cache: Cache, slots: Sequence[int]) -> None:
        """Write the states behind a pass to the slots, unless they lie there. RuntimeError where a layer has none."""
        kept = states(cache)
        for key, tensor in self._slots.items():
            rows = kept.get(key)
            if rows is None or rows.shape != (len(slots), *tensor.shape[1:]):
                got = None if rows is None else list(rows.shape)
                raise RuntimeError(f"{key}: expected a state [{len(slots)}, {list(tensor.shape[1:])}], got {got}")
            begin = _neighbours(slots)
            if begin is None:
                tensor[torch.tensor(slots, device=self.device)] = rows.to(tensor.dtype)
            elif rows.data_ptr() != tensor[begin].data_ptr():
                tensor[begin : begin + len(slots)] = rows

    def _rows(self, tensor: Tensor, slots: Sequence[int]) -> Tensor:
        begin = _neighbours(slots)
        if begin is None:
            return tensor[torch.tensor(slots, device=self.device)]
        return tensor[begin : begin + len(slots)]


def _neighbours(slots: Sequence[int]) -> int | None:
    """The first of ascending slots without a gap; None where there is one."""
    return slots[0] if slots[-1] - slots[0] == len(slots) - 1 else None
