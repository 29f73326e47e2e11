"""Running a transformers model with our attention instead of its own, for one pass at a time.

Letters: T rows (tokens) of a step, Hq query heads, H kv heads, D head_dim of Q and K, Dv head_dim of V, N logits rows,
V vocabulary.
"""

from __future__ import annotations

import functools
import inspect
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from asyncthink.model.registry import configs_of, patched, register
from asyncthink.model.watch import PROBE

ATTENTION = "asyncthink"
"""The name of our attention."""

_STEP_KEYWORD = "asyncthink_step"


class DecoderError(ValueError):
    """The model cannot be served, or lacks a requested feature. The message is one line with the reason."""


class Receiver(Protocol):
    """Takes the attention calls of one forward pass."""

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, given: dict[str, Any]
    ) -> Tensor:
        """query [1,Hq,T,D], key [1,H,T,D], value [1,H,T,Dv] -> [1,T,Hq,Dv]; ``given``: the layer's other keywords."""
        ...


class Patch(Protocol):
    """A change of the model for the length of a pass."""

    def patched(self) -> AbstractContextManager[None]: ...


class _Current(threading.local):
    """The receiver of this thread's pass.

    A context variable would not do: torch.compile cannot read one. Nor would a class attribute as the default: torch
    2.11 compiles its value in.
    """

    def __init__(self) -> None:  # runs in each thread that reads the receiver
        self.receiver: Receiver | None = None


_current = _Current()


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    *,
    asyncthink_step: Receiver | None = None,
    **given: Any,
) -> tuple[Tensor, None]:
    # The keyword is the explicit way. Some models drop keywords between layers: they use the thread's receiver.
    receiver = _current.receiver if asyncthink_step is None else asyncthink_step
    if receiver is None:
        raise RuntimeError(f"attention {ATTENTION!r}: expected a running step of a Decoder, got none")
    return receiver.attend(module, query, key, value, attention_mask, given), None


register(ATTENTION, _attention)
register(PROBE, _attention)

_locks: weakref.WeakKeyDictionary[nn.Module, threading.Lock] = weakref.WeakKeyDictionary()
_locks_guard = threading.Lock()


class HookedModel:
    """A model of the caller's, patched for one forward pass at a time.

    During a pass its configs choose our attention, autocast is off, and a model in training mode is in evaluation mode.
    Afterwards everything is restored, also after an error. The weights are shared with the caller, not copied. A lock
    for each model lets one pass run at a time, from any decoder or thread. It does not cover the caller's own use: do
    not run a training step on the model in another thread at the same time.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.configs = configs_of(model)
        self.takes_step = True  # forward() accepts keywords for its attention
        self.keeps_logits = True  # forward() honours logits_to_keep
        self.first_position = 0  # position of the first token when the caller gives no position_ids
        self.linears: Patch | None = None  # packed linear layers that replace the model's own
        self.compiled: Callable[..., Any] | None = None  # called instead of the model: (receiver, forward()'s keywords)
        with _locks_guard:
            self._lock = _locks.setdefault(model, threading.Lock())

    def exclusive(self) -> AbstractContextManager[Any]:
        """The model's lock: nobody else runs a pass within."""
        return self._lock

    @contextmanager
    def patched(self, attention: str | None) -> Iterator[None]:
        """The model with its attention implementation set to ``attention``, in evaluation mode, without autograd.

        None: the attention that the caller has set.
        """
        device = next(self.model.parameters()).device
        chosen = nullcontext() if attention is None else patched(self.configs, attention)
        with self._lock, torch.inference_mode(), _torch_defaults(device), chosen:
            training = [module for module in self.model.modules() if module.training] if self.model.training else ()
            try:
                for module in training:
                    module.training = False
                yield
            finally:
                for module in training:
                    module.training = True

    def call(self, tokens: Tensor, attention: str | None, receiver: Receiver | None = None) -> Tensor:
        """The model called with token ids alone, as its users call it: tokens [T] -> logits [T,V]."""
        with self.patched(attention), _receiving(receiver):
            output = self.model(input_ids=tokens[None])
            logits: Tensor = (output[0] if isinstance(output, tuple) else output.logits)[0]
            return logits

    def run(self, receiver: Receiver, tokens: Tensor, positions: Tensor, rows: Tensor) -> Tensor:
        """One packed pass. tokens, positions [T] int64, rows [N] int64, all on the model's device -> logits [N,V]."""
        keywords: dict[str, Any] = {}
        if self.takes_step:
            keywords[_STEP_KEYWORD] = receiver
        if self.keeps_logits:
            keywords["logits_to_keep"] = rows
        if self.first_position:
            positions = positions + self.first_position
        forward = self.model if self.compiled is None else functools.partial(self.compiled, receiver)
        with self.patched(ATTENTION), ExitStack() as more:
            if self.linears is not None:
                more.enter_context(self.linears.patched())
            more.enter_context(_receiving(receiver))
            output = forward(
                input_ids=tokens[None], position_ids=positions[None], use_cache=False, return_dict=True, **keywords
            )
            logits: Tensor = output.logits[0]
            return logits if self.keeps_logits else logits[rows]

    def run_rows(self, receiver: Receiver, cache: Any, tokens: Tensor, positions: Tensor, columns: Tensor) -> Tensor:
        """One pass of B rows behind ``cache``. tokens, positions [B,n], columns [m] int64 -> logits [B,m,V] there."""
        with self.patched(ATTENTION), ExitStack() as more:
            if self.linears is not None:
                more.enter_context(self.linears.patched())
            more.enter_context(_receiving(receiver))
            return self.call_rows(cache, tokens, positions, columns)

    def call_rows(self, cache: Any, tokens: Tensor, positions: Tensor, columns: Tensor | None) -> Tensor:
        """The model with a cache, within :meth:`patched`; ``columns`` None: the logits of all n tokens."""
        keywords: dict[str, Any] = {self._cache_keyword: cache}
        if "position_ids" in self._keywords:
            keywords["position_ids"] = positions
        keeps = columns is not None and "logits_to_keep" in self._keywords
        if keeps:
            keywords["logits_to_keep"] = columns
        forward = self.model if self.compiled is None else functools.partial(self.compiled, None)
        output = forward(input_ids=tokens, use_cache=True, return_dict=True, **keywords)
        logits: Tensor = output.logits
        return logits if keeps or columns is None else logits[:, columns]

    @functools.cached_property
    def _keywords(self) -> frozenset[str]:
        """Those that the model's forward names."""
        return frozenset(inspect.signature(self.model.forward).parameters)

    @property
    def _cache_keyword(self) -> str:
        return "cache_params" if "cache_params" in self._keywords else "past_key_values"


@contextmanager
def _receiving(receiver: Receiver | None) -> Iterator[None]:
    """The attention calls of this thread go to ``receiver``."""
    outer, _current.receiver = _current.receiver, receiver
    try:
        yield
    finally:
        _current.receiver = outer


@contextmanager
def _torch_defaults(device: torch.device) -> Iterator[None]:
    """No autocast on ``device``, and the CPU as the default device, whatever the caller has set.

    A Decoder's K and V have the dtype of the weights, so its passes compute in that dtype.
    """
    with ExitStack() as stack:
        if torch.is_autocast_enabled(device.type):
            stack.enter_context(torch.autocast(device.type, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield
