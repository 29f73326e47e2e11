"""The attention layers of a model, found by small forward passes: the second of three checks at load.

Letters: T rows (tokens), n probed positions, Hq query heads, H kv heads, D head_dim of K, Dv of V, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from asyncthink.model.checks import one_line, probe_tokens, text_config
from asyncthink.model.hook import DecoderError, HookedModel
from asyncthink.model.registry import HARMLESS
from asyncthink.model.watch import PROBE, Mask, WatchedTables, same_memory, watched_masks
from asyncthink_kernels.cache import LayerShape

_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_KEYWORDS = HARMLESS | {"scaling", "sliding_window", "softcap", "s_aux", "dropout", "logits_to_keep"}
_PROBE_LAST_POSITION = 4093
_OWN_CALL = 6  # tokens
_IGNORED = "ignores the attention implementation it is given, so it cannot run on ours"


@dataclass(frozen=True, eq=False)
class Call:
    """One recorded attention call: key [n,H,D] and value [n,H,Dv] of one token at the probed positions."""

    module: nn.Module
    key: Tensor
    value: Tensor
    window: int | None
    mask: Tensor | None


@dataclass(frozen=True, eq=False)
class Layers:
    """The attention layers of a model in the order they run, with K and V of one token at ``positions`` [n].

    ``max_length`` is the number of positions that the model supports; None where there is no limit.
    """

    calls: tuple[Call, ...]
    positions: Tensor
    max_length: int | None

    @property
    def shapes(self) -> tuple[LayerShape, ...]:
        """What each layer caches for a token."""
        return tuple(
            LayerShape(kv_heads=call.key.shape[1], head_dim=call.key.shape[2], v_head_dim=call.value.shape[2])
            for call in self.calls
        )

    @property
    def ends(self) -> tuple[nn.Module, nn.Module] | None:
        """The first and the last of them; None where there is none."""
        return (self.calls[0].module, self.calls[-1].module) if self.calls else None

    @property
    def dtype(self) -> torch.dtype:
        """Of K and V in every layer; float32 where there is none."""
        return self.calls[0].key.dtype if self.calls else torch.float32


class _Recorder:
    """Records the attention calls of a pass. Each token attends to itself alone: the output is its own V.

    So hidden states do not depend on positions, and the K of each layer shows how positions enter it. ``masks`` are the
    masks that transformers builds in this pass; by default none.
    """

    def __init__(self, kind: str, masks: Sequence[Mask] = ()) -> None:
        self.kind = kind
        self.calls: list[Call] = []
        self._masks = masks

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, given: dict[str, Any]
    ) -> Tensor:
        where = f"{self.kind}: attention call {len(self.calls)}"
        if given.get("is_causal") is False or getattr(module, "is_causal", True) is False:
            raise DecoderError(f"{self.kind} is not a decoder: its attention looks in both directions")
        unknown = sorted(name for name, value in given.items() if value is not None and name not in _KEYWORDS)
        if unknown:
            raise DecoderError(f"{where} passes keywords that we do not know: {', '.join(unknown)}")
        if mask is not None and not any(same_memory(mask, known.tensor) for known in self._masks):
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
        keys, values = key[0].transpose(0, 1).clone(), value[0].transpose(0, 1).clone()
        self.calls.append(Call(module, keys, values, given.get("sliding_window"), mask))
        return values.repeat_interleave(Hq // key.shape[1], dim=1)[None]


def record_layers(hooked: HookedModel, kind: str, *, changes_at: int | None) -> Layers:
    """Record the attention calls of two passes: one with token ids alone, as users call the model, and one packed step.

    Sets in ``hooked`` whether the model takes our keyword and honours logits_to_keep, and which position it gives to
    the first token by default. The rows of the packed step are one token at several positions, each attending to itself
    alone; the last row repeats the first. ``changes_at`` is the length from which RoPE changes, if it does.
    """
    own, ours = _own_call(hooked, kind)
    if not own:
        raise DecoderError(f"{kind} {_IGNORED}")
    limits = [rows - first for rows, first in ours] + ([] if changes_at is None else [changes_at])
    max_length = min(limits, default=None)
    config = text_config(hooked.model)
    trained = getattr(config, "max_position_embeddings", None)
    last = min([_PROBE_LAST_POSITION] + [limit - 1 for limit in (max_length, trained) if isinstance(limit, int)])
    device = next(hooked.model.parameters()).device
    positions = torch.tensor([1, 0, min(5, last), min(37, last), last, 1], device=device)
    calls, given = _first_pass(hooked, kind, positions)
    expected = getattr(config, "decoder_layers", None) or getattr(config, "num_hidden_layers", len(calls))
    if len({call.module for call in calls}) != len(calls) or len(calls) != expected:
        raise DecoderError(
            f"{kind} must call attention exactly once in each of its {expected} layers, "
            f"got {len(calls)} calls from {len({call.module for call in calls})} modules"
        )
    if len({call.key.dtype for call in calls}) != 1:
        raise DecoderError(f"{kind} must have K and V of one dtype in all layers")
    _check_rows(kind, calls)
    hooked.first_position = _first_position(kind, ours, given)
    return Layers(calls, positions, max_length)


def record_rows(hooked: HookedModel, kind: str, expected: int, *, changes_at: int | None) -> Layers:
    """The ``expected`` attention layers of a model with recurrent ones, by a call with token ids alone.

    A packed step would mix rows in such a model, so where K lies is not probed: only exact joins need no answer.
    """
    calls, tables = _own_call(hooked, kind)
    if len(calls) != expected:
        raise DecoderError(f"{kind} must call attention exactly once in each of {expected} layers, got {len(calls)}")
    if len({call.key.dtype for call in calls}) > 1:
        raise DecoderError(f"{kind} must have K and V of one dtype in all layers")
    if any(first for _, first in tables):
        raise DecoderError(f"{kind} looks up its positions in a table that does not begin with the first token's")
    limits = [rows for rows, _ in tables] + ([] if changes_at is None else [changes_at])
    device = next(hooked.model.parameters()).device
    return Layers(calls, torch.arange(_OWN_CALL, device=device), min(limits, default=None))


def _own_call(hooked: HookedModel, kind: str) -> tuple[tuple[Call, ...], set[tuple[int, int]]]:
    """Call the model with token ids alone -> its attention calls, and the position tables that it reads, as (rows, row
    of the first token).

    DecoderError where a layer's mask differs from the window that it passes to its attention.
    """
    device = next(hooked.model.parameters()).device
    tokens = torch.tensor(probe_tokens(hooked.model, _OWN_CALL), device=device)
    with watched_masks() as masks, WatchedTables(_OWN_CALL) as tables:
        recorder = _Recorder(kind, masks)
        try:
            hooked.call(tokens, PROBE, recorder)
        except DecoderError:
            raise
        except Exception as error:
            raise _unable(hooked, kind, "cannot be called with token ids alone", error) from error
    for layer, call in enumerate(recorder.calls):
        if call.mask is not None:
            mask = next(known for known in masks if same_memory(call.mask, known.tensor))
            _check_window(f"{kind} masks", layer, call.window, mask)
    lookups: set[tuple[int, int]] = tables.positions(range(_OWN_CALL))
    return tuple(recorder.calls), lookups


def _check_window(masks: str, layer: int, window: int | None, mask: Mask) -> None:
    """DecoderError unless ``window``, which a layer passes to its attention, is its mask's: rows would see too much."""
    if mask.is_window(window):
        return
    if not mask.is_window(mask.local_size):
        raise DecoderError(f"{masks} by a rule that is neither causal nor a sliding window, in layer {layer}")
    built = "no window" if mask.local_size is None else f"a sliding window of {mask.local_size} tokens"
    passed = "without telling its attention" if window is None else f"but tells its attention {window}"
    raise DecoderError(f"{masks} {built} {passed}, in layer {layer}")


def _first_pass(hooked: HookedModel, kind: str, positions: Tensor) -> tuple[tuple[Call, ...], set[tuple[int, int]]]:
    """One packed pass -> its attention calls, and the position tables that it reads."""
    tokens = torch.full_like(positions, probe_tokens(hooked.model, 1)[0])
    rows = positions.new_tensor([0])
    for takes_step, keeps_logits in ((True, True), (False, True), (False, False)):
        hooked.takes_step, hooked.keeps_logits = takes_step, keeps_logits
        recorder = _Recorder(kind)
        try:
            with WatchedTables(len(tokens)) as tables:
                logits = hooked.run(recorder, tokens, positions, rows)
        except DecoderError:
            raise
        except Exception as error:
            if isinstance(error, TypeError) and "unexpected keyword" in str(error) and (takes_step or keeps_logits):
                continue
            raise _unable(hooked, kind, "cannot run a packed batch on our attention", error) from error
        # A model that swallows logits_to_keep returns the logits of all rows.
        hooked.keeps_logits = keeps_logits and logits.shape[0] == rows.shape[0]
        where: list[int] = positions.tolist()
        return tuple(recorder.calls), tables.positions(where)
    raise AssertionError("the last attempt returns or raises")


def _unable(hooked: HookedModel, kind: str, what: str, error: Exception) -> DecoderError:
    # A model that runs its own attention may fail for lack of a mask before we see that it ignores ours.
    if not getattr(hooked.model, "_can_set_attn_implementation", lambda: True)():
        return DecoderError(f"{kind} {_IGNORED}")
    return DecoderError(f"{kind} {what}: {one_line(error)}")


def _first_position(kind: str, own: set[tuple[int, int]], given: set[tuple[int, int]]) -> int:
    """The position to pass for a first token, so that the model reads the table rows that it reads by itself."""
    shifts = {first - other for rows, first in own for same, other in given if same == rows}
    fitting = [shift for shift in shifts or {0} if {(rows, first + shift) for rows, first in given} == own]
    if len(fitting) != 1:
        raise DecoderError(
            f"{kind} looks up its positions otherwise when position_ids are given than when they are not"
        )
    return fitting[0]


def _check_rows(kind: str, calls: Sequence[Call]) -> None:
    """The first and the last row are the same token at the same position, so their K and V must agree."""
    for layer, call in enumerate(calls):
        for name, tensor in (("K", call.key), ("V", call.value)):
            difference = (tensor[-1] - tensor[0]).abs().max() / tensor[0].abs().max()
            if difference > 16 * torch.finfo(tensor.dtype).eps ** 0.75:
                raise DecoderError(
                    f"{kind} gives one token at one position another {name} in another row of layer {layer} "
                    f"(relative difference {difference.item():.1e}): it ignores position_ids, or something besides "
                    "attention mixes the rows"
                )
