"""A model's own cache, as its users make and use it: ``model(input_ids, past_key_values=cache, use_cache=True)``.

Letters: n new tokens of a context, k of them whose logits are wanted, V vocabulary.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import Cache, PreTrainedConfig

from asyncthink.model.hook import DecoderError, HookedModel
from asyncthink.model.weights import version

CHUNKS, SINGLES, WHOLE = "chunks", "singles", "whole"
FEEDS = {
    CHUNKS: "several tokens of a branch at once",
    SINGLES: "one token of a branch at a time, but for the first tokens of a context",
    WHOLE: "the whole context again in every step, as the model keeps no cache that could be continued",
}
"""How tokens can enter a context, the fastest first; a model is fed in the first way that gives its own logits."""

_NAMES = ("past_key_values", "cache_params", "state", "mems", "past_buckets_states")
"""Under which of its outputs a model gives its cache; it is passed by the same name."""


class Own(NamedTuple):
    """A cache object of a model, and the keyword that passes it."""

    name: str
    cache: Any


class OwnCalls:
    """Calls of one model with its own cache objects, fed in one of :data:`FEEDS`. The model's attention stays as it is.

    A cache is None before its first token. ``croppable``: whether :meth:`crop` may be tried.
    """

    def __init__(self, hooked: HookedModel, feed: str) -> None:
        self.hooked, self.feed = hooked, feed
        self.count = self.refreshes = 0  # calls of the model; changes of the weights that the caller told of
        self.device = next(hooked.model.parameters()).device
        self._keeps_logits = "logits_to_keep" in inspect.signature(hooked.model.forward).parameters
        self._stateful = bool(getattr(hooked.model, "_is_stateful", False))

    @torch.inference_mode()
    def extend(
        self, cache: Own | None, before: Sequence[int], new: Sequence[int], keep: int
    ) -> tuple[Own | None, Tensor]:
        """The cache of tokens ``before`` with n ``new`` ones behind, and the logits [k,V] of the last ``keep`` = k.

        The given cache must not be used again, whether this returns or raises.
        """
        if self.feed == WHOLE:
            return None, self._call(None, [*before, *new], keep)[1]
        if self.feed == CHUNKS or cache is None:
            return self._call(cache, new, keep)
        logits = []
        for number, token in enumerate(new):
            cache, row = self._call(cache, [token], int(number >= len(new) - keep))
            logits.append(row)
        return cache, torch.cat(logits)

    def _call(self, cache: Own | None, tokens: Sequence[int], keep: int) -> tuple[Own | None, Tensor]:
        keywords: dict[str, Any] = {"use_cache": True} if self.feed != WHOLE else {}
        if cache is not None:
            keywords[cache.name] = cache.cache
        if self._keeps_logits:
            keywords["logits_to_keep"] = max(keep, 1)
        ids = torch.tensor([tokens], dtype=torch.int64, device=self.device)
        with self.hooked.patched(None), ExitStack() as more:
            if self.hooked.linears is not None:
                more.enter_context(self.hooked.linears.patched())
            output = self.hooked.model(input_ids=ids, return_dict=True, **keywords)
        self.count += 1
        logits: Tensor = output.logits[0]
        if self.feed == WHOLE:
            return None, logits[len(logits) - keep :]
        name = next((name for name in _NAMES if getattr(output, name, None) is not None), None)
        if name is None:
            raise DecoderError("it returns no cache")
        return Own(name, getattr(output, name)), logits[len(logits) - keep :]

    def version(self) -> int:
        """A number that changes with :attr:`refreshes`, and when weights are changed in place or moved."""
        return hash((self.refreshes, *map(version, self.hooked.model.parameters())))

    @torch.inference_mode()
    def copy(self, cache: Own | None) -> Own | None:
        """A copy that shares no memory with the cache, and takes no more than what can be seen of it."""
        memo: dict[int, Any] = {id(tensor): tensor.clone() for tensor in tensors_of(cache)}
        memo |= {id(shared): shared for shared in _walk(cache) if isinstance(shared, (PreTrainedConfig, nn.Module))}
        return copy.deepcopy(cache, memo)

    def croppable(self, cache: Own | None) -> bool:
        """Whether the cache's own ``crop`` takes tokens off its end, and leaves no trace of them."""
        if cache is None:
            return True
        own = cache.cache
        return isinstance(own, Cache) and not self._stateful and bool(own.is_croppable)

    @torch.inference_mode()
    def crop(self, cache: Own | None, remove: int) -> bool:
        """Take the last ``remove`` tokens off; False where that is impossible: the cache is not to be used again."""
        if cache is None or remove == 0:
            return True
        try:
            cache.cache.crop(-remove)
        except (RuntimeError, ValueError, NotImplementedError):  # as a sliding window that has let go of tokens
            return False
        return True


def tensors_of(value: Any) -> Iterator[Tensor]:
    """Each tensor in a cache, once."""
    return (part for part in _walk(value) if isinstance(part, Tensor))


def nbytes(cache: Any) -> int:
    """Bytes of all tensors in a cache."""
    return sum(tensor.nbytes for tensor in tensors_of(cache))


def _walk(value: Any) -> Iterator[Any]:
    """The value, and what it refers to: containers and plain objects are entered, modules and configs are not."""
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if id(part) in seen or part is None or isinstance(part, (str, bytes, int, float, type)):
            continue
        seen.add(id(part))
        yield part
        waiting.extend(_parts(part))


def _parts(part: Any) -> Iterable[Any]:
    if isinstance(part, (Tensor, PreTrainedConfig, nn.Module, torch.device, torch.dtype)):
        return ()
    if isinstance(part, dict):
        return part.values()
    if isinstance(part, (list, tuple, set, frozenset)):
        return part
    return vars(part).values() if hasattr(part, "__dict__") and not callable(part) else ()
