"""Running a transformers model with our attention in the place of its own, and leaving no trace.

Letters: T rows (tokens) of a step, Hq query heads, H kv heads, D head_dim of Q and K, Dv head_dim of V, N logits rows,
V vocabulary.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig

ATTENTION = "asyncthink"
"""Our name in transformers' AttentionInterface. It has no mask function: transformers then builds no mask at all."""

PROBE = "asyncthink_probe"
"""The same attention under a name for which masks are asked for, so that a probe sees which windows a model wants."""

_STEP_KEYWORD = "asyncthink_step"


class DecoderError(ValueError):
    """The model cannot be served, or cannot do what is asked; one line that says why."""


class Receiver(Protocol):
    """Takes the attention calls of one forward pass."""

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, given: dict[str, Any]
    ) -> Tensor:
        """query [1,Hq,T,D], key [1,H,T,D], value [1,H,T,Dv] -> [1,T,Hq,Dv]; ``given`` is what else the layer passes."""
        ...


class Lendable(Protocol):
    """Changes the model for the length of a pass."""

    def lent(self) -> AbstractContextManager[None]: ...


class _Current(threading.local):
    """The receiver of this thread's pass. (Not a context variable: torch.compile cannot look into one. No default in
    the class either: torch 2.11 compiles that in.)"""

    def __init__(self) -> None:  # in each thread that looks
        self.receiver: Receiver | None = None


_current = _Current()
_windows: ContextVar[set[int]] = ContextVar("asyncthink_windows")


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
    # The keyword is the explicit way; the thread's receiver serves the models that drop keywords between layers.
    receiver = _current.receiver if asyncthink_step is None else asyncthink_step
    if receiver is None:
        raise RuntimeError(f"attention {ATTENTION!r} works inside asyncthink.model.Decoder only; no step is running")
    return receiver.attend(module, query, key, value, attention_mask, given), None


def _note_mask(*_: Any, local_size: int | None = None, **__: Any) -> None:
    if local_size is not None:
        _windows.get().add(local_size)


AttentionInterface.register(ATTENTION, _attention)
AttentionInterface.register(PROBE, _attention)
AttentionMaskInterface.register(PROBE, _note_mask)

_locks: weakref.WeakKeyDictionary[nn.Module, threading.Lock] = weakref.WeakKeyDictionary()
_locks_guard = threading.Lock()


class BorrowedModel:
    """A model that belongs to somebody else's program, lent for one forward pass at a time.

    For the length of a pass its configs name our attention and, where it is in training mode, its modules are in
    evaluation mode; afterwards everything is as it was, also after an error. Weights are used where they lie. Passes
    over one model exclude each other, whatever decoder or thread they come from; a training step on the same model
    must not run in another thread at the same time.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.configs = _configs(model)
        self.takes_step = True  # forward() accepts keywords for its attention
        self.keeps_logits = True  # forward() honours logits_to_keep
        self.linears: Lendable | None = None  # linear layers to run in the place of the model's own
        self.compiled: Callable[..., Any] | None = None  # runs the model when given: (receiver, keywords of forward())
        with _locks_guard:
            self._lock = _locks.setdefault(model, threading.Lock())

    @contextmanager
    def lent(self, attention: str) -> Iterator[None]:
        """The model with its attention implementation set to ``attention``, in evaluation mode, without autograd."""
        with self._lock, torch.inference_mode():
            before = [config._attn_implementation for config in self.configs]
            training = [module for module in self.model.modules() if module.training] if self.model.training else ()
            try:
                for config in self.configs:
                    # The private name: the public setter walks all modules and overrides sub-configs that differ.
                    config._attn_implementation_internal = attention
                for module in training:
                    module.training = False
                yield
            finally:
                for config, attention_before in zip(self.configs, before, strict=True):
                    config._attn_implementation_internal = attention_before
                for module in training:
                    module.training = True

    def windows(self, receiver: Receiver, tokens: Tensor, positions: Tensor, rows: Tensor) -> tuple[Tensor, set[int]]:
        """``run``, and the sliding windows of the masks that the model would have built."""
        token = _windows.set(set())
        try:
            return self.run(receiver, tokens, positions, rows, attention=PROBE), _windows.get()
        finally:
            _windows.reset(token)

    def run(
        self, receiver: Receiver, tokens: Tensor, positions: Tensor, rows: Tensor, *, attention: str = ATTENTION
    ) -> Tensor:
        """One packed pass. tokens, positions [T] int64, rows [N] int64, all on the model's device -> logits [N,V]."""
        keywords: dict[str, Any] = {}
        if self.takes_step:
            keywords[_STEP_KEYWORD] = receiver
        if self.keeps_logits:
            keywords["logits_to_keep"] = rows
        forward = self.model if self.compiled is None else functools.partial(self.compiled, receiver)
        with self.lent(attention), nullcontext() if self.linears is None else self.linears.lent():
            outer, _current.receiver = _current.receiver, receiver
            try:
                output = forward(
                    input_ids=tokens[None], position_ids=positions[None], use_cache=False, return_dict=True, **keywords
                )
            finally:
                _current.receiver = outer
            logits: Tensor = output.logits[0]
            return logits if self.keeps_logits else logits[rows]


def _configs(model: nn.Module) -> Sequence[Any]:
    """Every config that a module of the model may read its attention implementation from."""
    found: dict[int, PreTrainedConfig] = {}
    waiting: list[Any] = [getattr(module, "config", None) for module in model.modules()]
    while waiting:
        config = waiting.pop()
        if isinstance(config, PreTrainedConfig) and id(config) not in found:
            found[id(config)] = config
            waiting.extend(getattr(config, name, None) for name in config.sub_configs)
    return tuple(found.values())
