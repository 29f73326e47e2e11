"""Which models can be served, judged by their classes and configs: the first of three checks at load.

The second is :mod:`asyncthink.model.layers`, the third :mod:`asyncthink.model.fork_check`.
"""

from __future__ import annotations

import itertools
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedConfig

from asyncthink.model.hook import DecoderError

_LAYER_TYPES = ("full_attention", "sliding_attention")
_STATE_TYPES = ("linear_attention", "conv", "hybrid", "hybrid_sliding", "moe", "mlp")
_STRIDE = 5  # between the token ids of a check


def check_kind(model: nn.Module, *, states: bool = False) -> str:
    """The model's type name; DecoderError unless it is a decoder whose layers are full or sliding attention.

    With ``states`` they may be recurrent too, if transformers' cache keeps their states.
    """
    kind = check_servable(model)
    if getattr(model, "_is_stateful", False) and not states:
        raise DecoderError(f"{kind} has recurrent layers whose states do not go through transformers' cache")
    text = text_config(model)
    types = getattr(text, "layer_types", None) or ()
    known = _LAYER_TYPES + _STATE_TYPES if states else _LAYER_TYPES
    wrong = sorted({str(layer_type) for layer_type in types if layer_type not in known})
    if wrong:
        raise DecoderError(f"{kind} has layers that are neither full nor sliding attention: {', '.join(wrong)}")
    return kind


def check_servable(model: nn.Module) -> str:
    """The model's type name; DecoderError unless it is a causal language model that reads token ids, on one device."""
    config = getattr(model, "config", None)
    if not isinstance(model, nn.Module) or not isinstance(config, PreTrainedConfig):
        raise DecoderError(f"expected a transformers causal language model, got {type(model).__name__}")
    kind = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        raise DecoderError(f"{kind} is not a decoder: it is an encoder-decoder model")
    head = getattr(model, "get_output_embeddings", lambda: None)()
    if head is None:
        raise DecoderError(f"{kind} ({type(model).__name__}) has no language-model head; load it as a causal LM")
    if not isinstance(getattr(getattr(model, "get_input_embeddings", lambda: None)(), "weight", None), Tensor):
        raise DecoderError(f"{kind} has no table of token embeddings, so what it reads is not token ids alone")
    devices = {str(parameter.device) for parameter in model.parameters()}
    if len(devices) != 1 or "meta" in devices:
        raise DecoderError(f"{kind} must have all its weights on one device, got {', '.join(sorted(devices))}")
    return kind


def text_config(model: Any) -> Any:
    """The config of a model's language part."""
    return model.config.get_text_config(decoder=True)


def vocabulary(model: Any) -> int:
    """The number of token ids."""
    return int(model.get_input_embeddings().weight.shape[0])


def output_width(model: Any) -> int:
    """The width of the logits; some models pad it beyond their tokens."""
    head = model.get_output_embeddings()
    if head is None:
        return vocabulary(model)
    return int(head.out_features if hasattr(head, "out_features") else head.weight.shape[0])


def padding_token(model: Any) -> int | None:
    """The id of padding. Models that derive positions from the token ids do not count it."""
    token: int | None = text_config(model).pad_token_id
    return token


def probe_tokens(model: nn.Module, count: int) -> list[int]:
    """``count`` ordinary token ids, none of them special; distinct and not adjacent where the vocabulary allows."""
    size, special = vocabulary(model), _special_tokens(model)
    spaced = ((size // 3 + _STRIDE * i) % size for i in range(size // _STRIDE))
    ids = itertools.chain(spaced, range(size))
    plain = list(itertools.islice((token for token in ids if token not in special), count)) or [size // 3]
    return [plain[i % len(plain)] for i in range(count)]


def _special_tokens(model: nn.Module) -> set[int]:
    """Ids that the configs name: padding, end of text, image placeholders, ..."""
    special: set[int] = set()
    for config in (model.config, text_config(model)):
        for name, value in vars(config).items():
            if name.endswith(("token_id", "token_ids", "token_index", "padding_idx")):
                values = value if isinstance(value, list) else [value]
                special.update(token for token in values if isinstance(token, int))
    return special


def one_line(error: BaseException) -> str:
    """The first line of an error's message with the name of its type."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__
