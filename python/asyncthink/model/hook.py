"""Running a transformers model with our attention in the place of its own, and leaving no trace.

Letters: T rows (tokens) of a step, Hq query heads, H kv heads, D head_dim of Q and K, Dv head_dim of V, N logits rows,
V vocabulary.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedConfig

from asyncthink.model.watch import PROBE

ATTENTION = "asyncthink"
"""Our name in transformers' AttentionInterface. It has no mask function: transformers then builds no mask at all."""

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
        raise RuntimeError(
            f"attention {ATTENTION!r} works inside asyncthink.model.decoder.Decoder only; no step is running"
        )
    return receiver.attend(module, query, key, value, attention_mask, given), None


AttentionInterface.register(ATTENTION, _attention)
AttentionInterface.register(PROBE, _attention)

_locks: weakref.WeakKeyDictionary[nn.Module, threading.Lock] = weakref.WeakKeyDictionary()
_locks_guard = threading.Lock()


class BorrowedModel:
    """A model that belongs to somebody else's program, lent for one forward pass at a time.

    For the length of a pass its configs name our attention, autocast is off and, where it is in training mode, its
    modules are in evaluation mode; afterwards everything is as it was, also after an error. Weights are used where they
    lie. Passes over one model exclude each other, whatever decoder or thread they come from; a training step on the
    same model must not run in another thread at the same time.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.configs = _configs(model)
        self.takes_step = True  # forward() accepts keywords for its attention
        self.keeps_logits = True  # forward() honours logits_to_keep
        self.first_position = 0  # that the model gives to the first token when it is left to itself
        self.linears: Lendable | None = None  # linear layers to run in the place of the model's own
        self.compiled: Callable[..., Any] | None = None  # runs the model when given: (receiver, keywords of forward())
        with _locks_guard:
            self._lock = _locks.setdefault(model, threading.Lock())

    @contextmanager
    def lent(self, attention: str) -> Iterator[None]:
        """The model with its attention implementation set to ``attention``, in evaluation mode, without autograd."""
        with self._lock, torch.inference_mode(), _by_default(next(self.model.parameters()).device):
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

    def call(self, tokens: Tensor, attention: str, receiver: Receiver | None = None) -> Tensor:
        """The model called as its users call it, with token ids and nothing else: tokens [T] -> logits [T,V]."""
        with self.lent(attention), _receiving(receiver):
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
        with self.lent(ATTENTION), ExitStack() as more:
            if self.linears is not None:
                more.enter_context(self.linears.lent())
            more.enter_context(_receiving(receiver))
            output = forward(
                input_ids=tokens[None], position_ids=positions[None], use_cache=False, return_dict=True, **keywords
            )
            logits: Tensor = output.logits[0]
            return logits if self.keeps_logits else logits[rows]


@contextmanager
def _receiving(receiver: Receiver | None) -> Iterator[None]:
    """The attention calls of this thread go to ``receiver``."""
    outer, _current.receiver = _current.receiver, receiver
    try:
        yield
    finally:
        _current.receiver = outer


@contextmanager
def _by_default(device: torch.device) -> Iterator[None]:
    """No autocast on ``device``, and tensors on the CPU where nothing else is said, whatever the caller has set.

    A Decoder's K and V are in the dtype of the weights, so its passes compute in that dtype.
    """
    with ExitStack() as stack:
        if torch.is_autocast_enabled(device.type):
            stack.enter_context(torch.autocast(device.type, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield


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
