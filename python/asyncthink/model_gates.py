"""What a model must satisfy to be served, checked once at load by small forward passes. Each gate has its own error.

Letters: T rows (tokens), n probed positions, Hq query heads, H kv heads, D head_dim of K, Dv of V, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from asyncthink.model_hook import BorrowedModel, DecoderError
from asyncthink_kernels.cache import LayerShape

_LAYER_TYPES = ("full_attention", "sliding_attention")
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_UNDERSTOOD = frozenset({"scaling", "sliding_window", "softcap", "s_aux"})
# Keywords of a whole model that some layers pass on; none changes what attention computes.
_HARMLESS = frozenset(
    {"dropout", "is_causal", "position_ids", "use_cache", "cache_position", "output_attentions", "return_dict"}
    | {"output_hidden_states", "output_router_logits", "logits_to_keep"}
)
_PROBE_LAST_POSITION = 4093


@dataclass(frozen=True, eq=False)
class Call:
    """One attention call as it reached us. key [n,H,D], value [n,H,Dv] of one token at the probed positions."""

    module: nn.Module
    key: Tensor
    value: Tensor
    window: int | None


@dataclass(frozen=True, eq=False)
class Layers:
    """The attention layers of a model in the order they run, with K and V of one token at ``positions`` [n]."""

    calls: tuple[Call, ...]
    positions: Tensor

    @property
    def shapes(self) -> tuple[LayerShape, ...]:
        """What each layer keeps of a token."""
        return tuple(
            LayerShape(kv_heads=call.key.shape[1], head_dim=call.key.shape[2], v_head_dim=call.value.shape[2])
            for call in self.calls
        )

    @property
    def dtype(self) -> torch.dtype:
        """Of K and V in every layer."""
        return self.calls[0].key.dtype


class _Recorder:
    """Receives the attention calls of the first pass: n times one token, each alone in its context.

    With one token to see attention returns its V, so hidden states do not depend on positions and every layer's K shows
    how positions enter it.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.calls: list[Call] = []

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, given: dict[str, Any]
    ) -> Tensor:
        where = f"{self.kind}: attention call {len(self.calls)}"
        if given.get("is_causal") is False or getattr(module, "is_causal", True) is False:
            raise DecoderError(f"{self.kind} is not a decoder: its attention looks in both directions")
        unknown = sorted(k for k, v in given.items() if v is not None and k not in _UNDERSTOOD | _HARMLESS)
        if unknown:
            raise DecoderError(f"{where} passes keywords that we do not know: {', '.join(unknown)}")
        if mask is not None:
            raise DecoderError(f"{where} brings its own mask; only causal and sliding-window attention can be served")
        B, Hq, T, D = query.shape
        if (
            B != 1
            or key.shape[::2] != (1, T)
            or value.shape[:3] != key.shape[:3]
            or key.shape[3] != D
            or Hq % key.shape[1]
        ):
            shapes = ", ".join(f"{list(tensor.shape)}" for tensor in (query, key, value))
            raise DecoderError(f"{where} does not bring one K and V for each row: Q, K, V are {shapes}")
        if not query.dtype == key.dtype == value.dtype or key.dtype not in _DTYPES:
            dtypes = ", ".join(str(tensor.dtype) for tensor in (query, key, value))
            raise DecoderError(f"{where} must have Q, K and V of one floating dtype, got {dtypes}")
        one_key, one_value = key[0].transpose(0, 1).clone(), value[0].transpose(0, 1).clone()
        self.calls.append(Call(module, one_key, one_value, given.get("sliding_window")))
        return one_value.repeat_interleave(Hq // key.shape[1], dim=1)[None]


def check_kind(model: nn.Module) -> str:
    """The model's type name; DecoderError unless it is a decoder whose layers are full or sliding attention."""
    config = getattr(model, "config", None)
    if not isinstance(model, nn.Module) or not isinstance(config, PreTrainedConfig):
        raise DecoderError(f"expected a transformers causal language model, got {type(model).__name__}")
    kind = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        raise DecoderError(f"{kind} is not a decoder: it is an encoder-decoder model")
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if head is None:
        raise DecoderError(f"{kind} ({type(model).__name__}) has no language-model head; load it as a causal LM")
    if getattr(model, "_is_stateful", False):
        raise DecoderError(f"{kind} has recurrent layers, which would mix the branches packed into one step")
    text = text_config(model)
    types = getattr(text, "layer_types", None) or ()
    wrong = sorted({str(one) for one in types if one not in _LAYER_TYPES})
    if wrong:
        raise DecoderError(f"{kind} has layers that are neither full nor sliding attention: {', '.join(wrong)}")
    if getattr(text, "attention_chunk_size", None) is not None and not types:
        raise DecoderError(f"{kind} attends in chunks of {text.attention_chunk_size} tokens, which is not supported")
    places = {str(parameter.device) for parameter in model.parameters()}
    if len(places) != 1 or "meta" in places:
        raise DecoderError(f"{kind} must have all its weights on one device, got {', '.join(sorted(places))}")
    return kind


def record_layers(borrowed: BorrowedModel, kind: str, *, last_position: int | None) -> Layers:
    """Run one token at several positions, each alone, and learn what reaches our attention.

    Finds out, and notes in ``borrowed``, whether the model takes our keyword and honours logits_to_keep. No position
    goes beyond ``last_position``; the first comes again at the end.
    """
    last = _PROBE_LAST_POSITION if last_position is None else min(_PROBE_LAST_POSITION, last_position)
    device = next(borrowed.model.parameters()).device
    positions = torch.tensor([1, 0, min(5, last), min(37, last), last, 1], device=device)
    calls, windows = _first_pass(borrowed, kind, positions)
    config = text_config(borrowed.model)
    expected = getattr(config, "decoder_layers", None) or getattr(config, "num_hidden_layers", len(calls))
    if len({call.module for call in calls}) != len(calls) or len(calls) != expected:
        raise DecoderError(
            f"{kind} must call attention exactly once in each of its {expected} layers, "
            f"got {len(calls)} calls from {len({call.module for call in calls})} modules"
        )
    if len({call.key.dtype for call in calls}) != 1:
        raise DecoderError(f"{kind} must have K and V of one dtype in all layers")
    _check_rows(kind, calls)
    _check_windows(kind, calls, getattr(config, "layer_types", None), windows)
    return Layers(calls, positions)


def _first_pass(borrowed: BorrowedModel, kind: str, positions: Tensor) -> tuple[tuple[Call, ...], set[int]]:
    tokens = torch.full_like(positions, probe_tokens(borrowed.model, 1)[0])
    rows = positions.new_tensor([0])
    ignored = f"{kind} ignores the attention implementation it is given, so it cannot run on ours"
    for takes_step, keeps_logits in ((True, True), (False, True), (False, False)):
        borrowed.takes_step, borrowed.keeps_logits = takes_step, keeps_logits
        recorder = _Recorder(kind)
        try:
            logits, windows = borrowed.windows(recorder, tokens, positions, rows)
        except DecoderError:
            raise
        except Exception as error:
            if isinstance(error, TypeError) and "unexpected keyword" in str(error) and (takes_step or keeps_logits):
                continue
            # Such a model runs its own attention, which may fail without a mask before we notice that it is not ours.
            if not getattr(borrowed.model, "_can_set_attn_implementation", lambda: True)():
                raise DecoderError(ignored) from error
            raise DecoderError(f"{kind} cannot run a packed batch on our attention: {one_line(error)}") from error
        if not recorder.calls:
            raise DecoderError(ignored)
        # A model that swallows logits_to_keep returns the logits of all rows.
        borrowed.keeps_logits = keeps_logits and logits.shape[0] == rows.shape[0]
        return tuple(recorder.calls), windows
    raise AssertionError("the last attempt returns or raises")


def _check_rows(kind: str, calls: Sequence[Call]) -> None:
    """The first and the last row are the same token at the same position, so they must agree."""
    for layer, call in enumerate(calls):
        for name, tensor in (("K", call.key), ("V", call.value)):
            difference = (tensor[-1] - tensor[0]).abs().max() / tensor[0].abs().max()
            if difference > 16 * torch.finfo(tensor.dtype).eps ** 0.75:
                raise DecoderError(
                    f"{kind} gives one token at one position another {name} in another row of layer {layer} "
                    f"(relative difference {difference.item():.1e}): it ignores position_ids, or something besides "
                    "attention mixes the rows"
                )


def _check_windows(kind: str, calls: Sequence[Call], types: Sequence[str] | None, masked: set[int]) -> None:
    """A layer that slides must tell our attention its window, or it would see too much, silently."""
    for layer, call in enumerate(calls):
        if types is not None and (types[layer] == "sliding_attention") != (call.window is not None):
            raise DecoderError(f"{kind}: layer {layer} is {types[layer]} but passes sliding_window={call.window}")
    untold = masked - {call.window for call in calls}
    if untold:
        raise DecoderError(f"{kind} masks a sliding window of {min(untold)} tokens without telling its attention")


def text_config(model: Any) -> Any:
    """The config of a model's language part."""
    return model.config.get_text_config(decoder=True)


def vocabulary(model: Any) -> int:
    """How many token ids a model can be given."""
    return int(model.get_input_embeddings().weight.shape[0])


def probe_tokens(model: nn.Module, count: int) -> list[int]:
    """Token ids from the middle of the vocabulary, away from the special ones; different ones where it has enough."""
    size = vocabulary(model)
    return [(size // 3 + i) % size for i in range(count)]


def one_line(error: BaseException) -> str:
    """The first line of an error's message with the name of its type."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__
