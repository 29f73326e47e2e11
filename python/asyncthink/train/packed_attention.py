"""Attention on a packed batch; it replaces the attention of a transformers model.

On a GPU it is FlexAttention with one block mask per batch. On a CPU it is our own kernel, which skips what a token does
not see and copies no prefix; for what that does not compute (float64, windows, softcaps, head dims other than multiples
of 16, no native build) torch's attention row by row. All implement the mask of
:func:`asyncthink.train.packing.visible`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention.flex_attention import BlockMask
from transformers import PreTrainedModel

from asyncthink.model.checks import one_line
from asyncthink.model.recurrent import has_states
from asyncthink.model.registry import HARMLESS, configs_of, install, register
from asyncthink.model.rotary import NotRotaryError, Rotary, find_rotaries
from asyncthink.model.tolerance import difference, limit
from asyncthink.train.packed_flex import block_mask, flex
from asyncthink.train.packing import Batch, Limits, Span, limits
from asyncthink.train.trace_rows import STATES, forked, require_causal, run_rows
from asyncthink_kernels.ops.row_attention import RowPlan, computes, row_attention

ATTENTION = "asyncthink_rows"
"""The name of our attention over packed rows."""


@dataclass(frozen=True, eq=False)
class PackedAttention:
    """The masks of one batch, shared by all layers of a forward pass and made when first needed."""

    batch: Batch
    seen: list[tuple[nn.Module, Tensor, Tensor]] | None = None  # records (module, K, V) of each call; K, V [T, H, D]
    _limits: dict[int | None, Limits] = field(default_factory=dict)
    _masks: dict[int | None, list[Tensor | None]] = field(default_factory=dict)
    _blocks: dict[int | None, BlockMask] = field(default_factory=dict)

    def limits(self, window: int | None) -> Limits:
        """The tokens that each token attends to, in a layer with this window."""
        if window not in self._limits:
            self._limits[window] = limits(self.batch, window)
        return self._limits[window]

    @functools.cached_property
    def plan(self) -> RowPlan:
        """What our own kernel reads."""
        return RowPlan.of([(span.start, span.stop, span.seen) for span in self.batch.spans])

    @functools.cached_property
    def visible(self) -> Tensor:
        """The tokens whose K/V each row reads, its prefix and its own, one row after another; int64."""
        device = self.batch.tokens.device
        ranges = [ends for span in self.batch.spans for ends in (*span.seen, (span.start, span.stop))]
        return torch.cat([torch.arange(*ends, device=device) for ends in ranges])

    def masks(self, window: int | None) -> list[Tensor | None]:
        """For each row of n tokens a mask [n, prefix + n] over its prefix and itself; None: causal, without prefix."""
        if window not in self._masks:
            self._masks[window] = [self._mask(span, window) for span in self.batch.spans]
        return self._masks[window]

    def _mask(self, span: Span, window: int | None) -> Tensor | None:
        if window is None and not span.seen:
            return None
        device = self.batch.tokens.device
        own = torch.arange(span.start, span.stop, device=device)
        prefix = [torch.arange(first, last, device=device) for first, last in span.seen]
        return self.limits(window).sees(own[:, None], torch.cat([*prefix, own])[None, :])

    def blocks(self, window: int | None) -> BlockMask:
        """The whole batch as a block mask."""
        if window not in self._blocks:
            self._blocks[window] = block_mask(self.limits(window))
        return self._blocks[window]

    def attend(
        self,
        module: nn.Module,
        query: Tensor,  # [1, Hq, T, D]
        key: Tensor,  # [1, H, T, D]
        value: Tensor,  # [1, H, T, Dv]
        scale: float,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:  # [1, Hq, T, Dv]
        if self.seen is not None:
            self.seen.append((module, key[0].transpose(0, 1), value[0].transpose(0, 1)))
        device = query.device.type
        autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        with torch.autocast(device, enabled=False):
            key, value = _moved(module, key, value, self.batch)
            if query.is_cuda:
                if autocast is not None:  # torch's own attention casts its arguments in the same way
                    query, key, value = query.to(autocast), key.to(autocast), value.to(autocast)
                return flex(query, key, value, self.blocks(window), scale, softcap)
            # float32 even under an autocast to bfloat16: the CPU's flash attention is slower in bfloat16
            dtype = torch.promote_types(query.dtype, torch.float32)
            given = [tensor.to(dtype) for tensor in (query, key, value)]
            if window is None and softcap is None and computes(*given):
                q, k, v = (tensor[0].transpose(0, 1) for tensor in given)
                out = row_attention(q, k, v, self.plan, scale).transpose(0, 1)[None]
            else:
                out = self._by_rows(*given, scale, window, softcap)
            return out.to(query.dtype)

    def _by_rows(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None, softcap: float | None
    ) -> Tensor:
        spans = self.batch.spans
        own = [span.stop - span.start for span in spans]
        seen = [span.position + size for span, size in zip(spans, own, strict=True)]
        if seen != own:  # one gather for all rows: the gradient of each slice would be as large as the batch
            key, value = (tensor.index_select(2, self.visible) for tensor in (key, value))
        rows = zip(*(torch.split(each, n, 2) for each, n in ((query, own), (key, seen), (value, seen))), strict=True)
        parts = []
        for (q, k, v), mask in zip(rows, self.masks(window), strict=True):
            if softcap is not None:
                parts.append(_capped(q, k, v, mask, scale, softcap))
            else:
                parts.append(
                    functional.scaled_dot_product_attention(
                        q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=True
                    )
                )
        return torch.cat(parts, 2)


def _capped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, softcap: float) -> Tensor:
    """Attention with scores ``softcap * tanh(scores / softcap)``, which torch's attention does not support."""
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = softcap * torch.tanh(q @ k.transpose(2, 3) * (scale / softcap))
    seen = mask if mask is not None else torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()
    return scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v


def _moved(module: nn.Module, key: Tensor, value: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """key, value [1, H, T, D] in which the workers' K/V replace those of the appended tokens."""
    if not batch.moved_to.numel():
        return key, value
    rotary: Rotary | None = getattr(module, "asyncthink_rotary", None)
    if rotary is None:
        raise ValueError("batch: expected no moved tokens, as use_packed_attention(model) was called without moves")
    shifts = (batch.positions[0, batch.moved_to] - batch.positions[0, batch.moved_from]).to(torch.float64)
    source = key[0, :, batch.moved_from].transpose(0, 1)
    rotated = rotary.rotate(source.double(), shifts).to(key.dtype).transpose(0, 1)[None]
    key = key.index_copy(2, batch.moved_to, rotated)
    return key, value.index_copy(2, batch.moved_to, value[:, :, batch.moved_from])


def attend_rows(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    *,
    asyncthink_rows: PackedAttention,
    sliding_window: int | None = None,
    softcap: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention by the rows of a batch, as transformers calls it: query [1, Hq, T, D] -> [1, T, Hq, D].

    Raises ValueError for what packed training does not support.
    """
    name = type(module).__name__
    refused = [option for option, given in options.items() if given is not None and option not in HARMLESS]
    refused += ["dropout"] * bool(dropout) + ["its own mask"] * (attention_mask is not None)
    if options.get("is_causal") is False or getattr(module, "is_causal", True) is False:
        refused.append("attention in both directions")
    if refused:
        raise ValueError(f"training: {name} uses {', '.join(refused)}, which packed training does not support")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    made = asyncthink_rows.attend(module, query, key, value, scale, sliding_window, softcap)
    return made.transpose(1, 2).contiguous(), None


def use_packed_attention(model: PreTrainedModel, moves: bool = False) -> str | None:
    """Make ``model`` attend by rows. With ``moves`` batches may hold ``append`` joins.

    A model that cannot be packed (recurrent layers, attention or masks of its own, attention sinks) keeps its own
    attention and runs one row a trace (:mod:`.trace_rows`); then this returns a sentence with the reason.

    The model is run on a few tokens: packed rows must get its own logits. Raises ValueError for a model that is not
    causal, and with ``moves`` when a cached K cannot be moved (:class:`asyncthink.model.rotary.NotRotaryError` says
    why), as it never can where rows are not packed.
    """
    reason = STATES if has_states(model) else _install(model)
    if reason is not None:
        if moves:
            raise NotRotaryError(f"{type(model).__name__} cannot be packed, as {reason}: expected exact joins alone")
        require_causal(model)
        return f"rows: one a trace, as {reason}; shared prefixes run again"
    if moves:
        layers, keys, values = zip(*_probe(model), strict=True)
        for layer, rotary in zip(layers, find_rotaries(model, keys, values, _PROBED), strict=True):
            layer.asyncthink_rotary = rotary
    return None


@torch.no_grad()
def _install(model: PreTrainedModel) -> str | None:
    """Give the model our attention -> None; or the reason why that is impossible, and the model is as it was."""
    configs = configs_of(model)
    before = [config._attn_implementation for config in configs]
    register(ATTENTION, attend_rows)
    try:
        with evaluating(model):
            batch = forked(model)
            expected = run_rows(model, batch).logits
            assert expected is not None
            install(model, ATTENTION)
            if not _probe(model):
                raise ValueError(f"{type(model).__name__} does not call the attention that it was given")
            got = run_packed(model, PackedAttention(batch)).logits
        apart = difference(got[0].float(), expected[0].float())
        most = limit(got.dtype, expected[0, -1], expected[0, 0])
        if not apart <= most:
            raise ValueError(f"{type(model).__name__} gives packed rows other logits (relative difference {apart:.1e})")
    except Exception as error:
        for config, attention in zip(configs, before, strict=True):
            config._attn_implementation_internal = attention
        reason = str(error).splitlines()[0] if isinstance(error, ValueError) else one_line(error)
        return reason.removeprefix("model: ").removeprefix("training: ")
    return None


_PROBED = torch.tensor([0, 1, 7, 500])  # positions at which a model is asked how its K depends on the position


@torch.no_grad()
def _probe(model: PreTrainedModel) -> list[tuple[nn.Module, Tensor, Tensor]]:
    """(module, K, V) of each attention call for one token, alone in its context, at several positions."""
    count = len(_PROBED)
    positions = _PROBED[None].to(model.device)
    nothing = torch.empty(0, dtype=torch.int64, device=model.device)
    spans = tuple(Span(k, k + 1) for k in range(count))
    seen: list[tuple[nn.Module, Tensor, Tensor]] = []
    rows = PackedAttention(Batch(torch.full_like(positions, 3), positions, positions, spans, nothing, nothing), seen)
    with evaluating(model):
        run_packed(model, rows)
    return seen


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module in evaluation mode; restore each module's mode on exit."""
    training = [module for module in model.modules() if module.training]
    try:
        model.eval()
        yield
    finally:
        for module in training:
            module.training = True


def run_packed(model: Any, rows: PackedAttention, **options: Any) -> Any:
    """The output of a model, or of its base model, for a packed batch."""
    batch = rows.batch
    if model.config._attn_implementation != ATTENTION:  # it could not be installed
        return run_rows(model, batch, **options)
    return model(input_ids=batch.tokens, position_ids=batch.positions, use_cache=False, asyncthink_rows=rows, **options)
