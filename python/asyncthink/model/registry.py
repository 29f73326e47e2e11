"""Attention of our own in a transformers model: its name in the registry, and the configs that choose it.

Names registered here have no mask function, so transformers builds no mask for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn
from transformers import AttentionInterface, PreTrainedConfig, PreTrainedModel

HARMLESS = frozenset(
    {"is_causal", "position_ids", "use_cache", "cache_position", "output_attentions", "output_hidden_states"}
    | {"output_router_logits", "return_dict"}
)
"""Keywords of a whole model that some layers pass on to attention. None changes what attention computes."""


def register(name: str, attention: Callable[..., Any]) -> None:
    """Let configs choose ``attention`` by ``name``."""
    AttentionInterface.register(name, attention)


def configs_of(model: nn.Module) -> Sequence[Any]:
    """Every config that a module of the model may read its attention implementation from."""
    configs: dict[int, PreTrainedConfig] = {}
    waiting: list[Any] = [getattr(module, "config", None) for module in model.modules()]
    while waiting:
        config = waiting.pop()
        if isinstance(config, PreTrainedConfig) and id(config) not in configs:
            configs[id(config)] = config
            waiting.extend(getattr(config, name, None) for name in config.sub_configs)
    return tuple(configs.values())


@contextmanager
def patched(configs: Sequence[Any], name: str) -> Iterator[None]:
    """For the length of a pass, all ``configs`` choose the attention called ``name``."""
    before = [config._attn_implementation for config in configs]
    try:
        for config in configs:
            # The private name: the public setter walks all modules and overrides sub-configs that differ.
            config._attn_implementation_internal = name
        yield
    finally:
        for config, attention in zip(configs, before, strict=True):
            config._attn_implementation_internal = attention


def install(model: PreTrainedModel, name: str) -> None:
    """Choose the attention called ``name`` for good. Raises ValueError for a model that does not take it.

    Training needs this: activation checkpointing runs layers again in the backward pass, after the forward has ended.
    """
    model.set_attn_implementation(name)
    if model.config._attn_implementation != name:
        raise ValueError(f"model: {type(model).__name__} does not take another attention implementation")
