"""Which joins a model supports: ``exact`` always, those of the cache where its cached keys can be moved."""

from __future__ import annotations

from torch import nn

from asyncthink.model.layers import Layers
from asyncthink.model.rotary import NotRotaryError, Rotary, find_rotaries
from asyncthink_kernels.cache import tree

CACHE_JOINS = tree.JOIN_MODES
JOIN_MODES = ("exact", *CACHE_JOINS)


def find_movable_keys(
    model: nn.Module, kind: str, layers: Layers, changing: tuple[str, int] | None
) -> tuple[tuple[Rotary, ...] | None, dict[str, str]]:
    """How positions enter each layer's K, and for each join that is unavailable the reason.

    ``changing`` is RoPE that depends on the text's length (:func:`asyncthink.model.rotary.length_dependent`).
    """
    try:
        if changing is not None:
            raise NotRotaryError(f"its {changing[0]} RoPE changes in texts longer than {changing[1]} tokens")
        keys, values = [call.key for call in layers.calls], [call.value for call in layers.calls]
        return find_rotaries(model, keys, values, layers.positions), {}
    except NotRotaryError as error:
        return None, dict.fromkeys(CACHE_JOINS, f"{kind} can only join exactly: {error}")


def only_exact(kind: str) -> dict[str, str]:
    """The reason why a model with recurrent layers has no join of the cache, for each of them."""
    reason = "it has recurrent layers, whose states joined K and V would not have passed through"
    return dict.fromkeys(CACHE_JOINS, f"{kind} can only join exactly: {reason}")
