"""Which joins a model supports (``exact`` always, those of the cache where its cached keys can be moved), and how the
cache carries them out."""

from __future__ import annotations

from torch import nn

from asyncthink.model.attention import PagedAttention
from asyncthink.model.hook import DecoderError
from asyncthink.model.layers import Layers
from asyncthink.model.rotary import NotRotaryError, Rotary, find_rotaries
from asyncthink_kernels.cache import Branch, TreeCache, tree

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


class CacheJoins:
    """Continues branches with tokens of others, whose K and V are copied or read in place."""

    def __init__(self, cache: TreeCache, attention: PagedAttention, unavailable: dict[str, str]) -> None:
        self.cache, self.attention, self.unavailable = cache, attention, unavailable

    def join(self, dst: Branch, src: Branch, start: int, stop: int, mode: str) -> None:
        """:meth:`asyncthink.model.decoder.Decoder.join`."""
        if mode not in CACHE_JOINS:
            raise ValueError(f"mode must be 'append' or 'link' (for 'exact' plan the tokens as rows), got {mode!r}")
        if mode in self.unavailable:
            raise DecoderError(self.unavailable[mode])
        before = dst.length
        scatter = self.cache.join(dst, src, start, stop, "append" if mode == "append" else "link")
        if scatter is not None:
            try:
                self.attention.append(scatter)
            except BaseException:
                self.cache.truncate(dst, before)  # so that slots which were never written are not read
                raise

    def copy(self, dst: Branch, src: Branch, start: int, stop: int) -> None:
        """:meth:`asyncthink.model.decoder.Decoder.copy`."""
        self.cache.check_copy(dst, src, start, stop)
        scatter = self.cache.join(dst, src, start, stop, "append")
        assert scatter is not None
        try:
            self.attention.copy(scatter)
        except BaseException:
            self.cache.truncate(dst, start)  # so that slots which were never written are not read
            raise
