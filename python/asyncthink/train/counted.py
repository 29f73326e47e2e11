"""What a pass through a model keeps, and what its caches take, counted without memory: on torch's meta device."""

from __future__ import annotations

import copy
import inspect
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from asyncthink.model.checks import one_line, probe_tokens
from asyncthink.model.fallback_check import Sizes, cache_sizes
from asyncthink.model.hook import DecoderError, HookedModel
from asyncthink.model.own_cache import CHUNKS, OwnCalls
from asyncthink.model.recurrent import StateLayout
from asyncthink.model.registry import HARMLESS, configs_of, patched, register

_COUNTED = "asyncthink_counted"
_KNOWN = HARMLESS | {"scaling", "sliding_window", "softcap", "dropout"}  # what packed training supports
_PROBED = 24  # tokens
_PAGE = 16  # tokens


@dataclass(slots=True)
class Probed:
    """The attention calls of a model: how many, the bytes of K and V of one token in all of them, and whether packed
    rows can take their place; a model without any has attention of its own, or none."""

    calls: int = 0
    token_bytes: int = 0
    packable: bool = False


@dataclass(slots=True)
class Kept:
    """Bytes that autograd keeps of a pass, every memory once, weights apart: in all, and by decoder layer."""

    total: int = 0
    by_layer: dict[int, int] = field(default_factory=dict)

    @property
    def layers(self) -> int:
        return len(self.by_layer)

    @property
    def largest(self) -> int:
        """Of the layer that keeps most."""
        return max(self.by_layer.values(), default=0)

    @property
    def outside(self) -> int:
        """Of what is not in a layer."""
        return self.total - sum(self.by_layer.values())


def probe(model: nn.Module) -> Probed:
    """The attention calls of a short pass of a model on the meta device."""
    if not getattr(model, "_can_set_attn_implementation", lambda: True)():
        return Probed()
    _seen.append(Probed())
    try:
        with torch.no_grad():
            _run(model, 1, 2, counted=True)
    finally:
        probed = _seen.pop()
    return probed


def count_pass(model: nn.Module, rows: int, length: int, *, counted: bool) -> Kept:
    """What training keeps of ``rows`` rows of ``length`` tokens in a model on the meta device.

    ``counted``: the model calls the attention that it is given; else its own is part of what is counted.
    """
    own = {id(each) for each in model.parameters()}
    held: dict[int, Tensor] = {}  # the tensors are held, so that no address is used again
    kept = Kept()
    inside: list[int] = []  # the layer that computes

    def keep(tensor: Tensor) -> Tensor:
        base = tensor if tensor._base is None else tensor._base
        if id(base) not in own and id(base) not in held:
            held[id(base)] = base
            kept.total += base.nbytes
            for layer in inside:
                kept.by_layer[layer] += base.nbytes
        return tensor

    def enter(number: int) -> None:
        kept.by_layer.setdefault(number, 0)
        inside.append(number)

    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    handles = []
    for number, layer in enumerate(layers):
        handles.append(layer.register_forward_pre_hook(lambda *_, number=number: enter(number)))
        handles.append(layer.register_forward_hook(lambda *_: inside.clear()))
    try:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            _run(model, rows, length, counted=counted)
    finally:
        for handle in handles:
            handle.remove()
    return kept


def state_bytes(config: PreTrainedConfig, dtype: torch.dtype) -> int:
    """Bytes of one recurrent state of a model with this configuration. DecoderError where it has none that is known."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        return StateLayout(_fake(config, dtype), config.model_type).bytes_per_state


def own_token_bytes(config: PreTrainedConfig, dtype: torch.dtype) -> int:
    """Bytes that a token counts for in the pages of a fallback decoder."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        hooked = _fake(config, dtype)
        try:
            sizes = cache_sizes(OwnCalls(hooked, CHUNKS), probe_tokens(hooked.model, _PROBED))
        except DecoderError:  # it returns no cache: the whole context is computed in each step
            sizes = Sizes(0, 0)
    return sizes.unit(_PAGE)


def _fake(config: PreTrainedConfig, dtype: torch.dtype) -> HookedModel:
    made: nn.Module = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=dtype)  # type: ignore[no-untyped-call]
    return HookedModel(made.eval())


def _run(model: Any, rows: int, length: int, *, counted: bool) -> None:
    """A pass of the layers, with attention that is ``counted`` or the model's own.

    ValueError for a model that looks at values, which are not there; in float32 also for experts.
    """
    register(_COUNTED, _attention)
    base = model.base_model
    keywords: dict[str, Any] = {"use_cache": False}
    if "position_ids" in inspect.signature(base.forward).parameters:
        keywords["position_ids"] = torch.arange(length, device="meta")[None]
    width = model.get_input_embeddings().embedding_dim
    embedded = torch.empty(rows, length, width, device="meta", dtype=model.dtype)
    with patched(configs_of(model), _COUNTED) if counted else nullcontext():
        try:
            base(inputs_embeds=embedded.requires_grad_(), **keywords)
        except (RuntimeError, TypeError) as error:
            raise ValueError(
                f"model: {model.config.model_type} cannot be run without memory, so that its activations could be "
                f"counted: {one_line(error)}"
            ) from error


_seen: list[Probed] = []  # what the attention calls of a probe are told to


class _Attention(torch.autograd.Function):
    """Attention as a fused kernel keeps it: its inputs, its output, and one number for each query."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        B, Hq, n, _ = query.shape
        out = value.new_empty(B, n, Hq, value.shape[-1]).transpose(1, 2)  # as kernels write it
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return out


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **given: Any
) -> tuple[Tensor, None]:
    for probed in _seen:
        probed.calls += 1
        probed.token_bytes += (key[0, :, 0].numel() + value[0, :, 0].numel()) * key.element_size()
        known = all(name in _KNOWN for name, option in given.items() if option is not None)
        probed.packable = known and (probed.packable or probed.calls == 1)
    return _Attention.apply(query, key, value).transpose(1, 2), None  # type: ignore[no-untyped-call]
