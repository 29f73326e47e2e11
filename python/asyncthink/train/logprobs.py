"""Log-probabilities of a packed batch, in memory that does not grow with (tokens x vocabulary)."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from asyncthink.engine.sampling import forbid
from asyncthink.train.guided import DrawnMasks
from asyncthink.train.packed_attention import PackedAttention, evaluating, run_packed
from asyncthink.train.packing import IGNORED, Batch, Row, pack
from asyncthink.train.sharding import inside

Score: TypeAlias = "Callable[[Head, Tensor, Tensor, float, Tensor | None], Tensor]"
CHUNK = 2**25  # logits in memory at the same time


def logits_of(model: nn.Module, batch: Batch) -> Tensor:
    """[1, T, V] logits of a packed batch. The model must use packed attention (``use_packed_attention``)."""
    logits: Tensor = run_packed(model, PackedAttention(batch)).logits
    return logits


def token_logprobs(
    model: nn.Module, batch: Batch, temperature: float = 1.0, chunk: int = CHUNK, masks: DrawnMasks | None = None
) -> Tensor:
    """``out[t] = log softmax(logits[t] / temperature)[labels[0, t]]``, natural logarithm; 0 if the label is IGNORED.

    Logits are computed only at labelled positions, at most ``chunk`` numbers at a time. If they need more than one
    chunk, the backward pass computes them again.

    Args:
        model: a transformers decoder prepared by :func:`.packed_attention.use_packed_attention`.
        batch: on the model's device.
        temperature: the sampler's (``SamplingParams.temperature``); the result then equals its ``Trace.logprobs``.

        masks: the tokens among which each of the N labelled ones was drawn (:func:`.guided.drawn_masks`), on the
            batch's device; softmax is over these alone. None: over all.

    Returns:
        [T] float32 (float64 for a float64 model). Token k of a row is scored at ``span.start + k - 1``.

    Raises:
        ValueError: a temperature that is not above 0, masks of another number of tokens, or a model whose logits are
            not those of its output layer, possibly scaled or soft-capped.

    >>> use_packed_attention(model)                                                        # doctest: +SKIP
    >>> batch = pack([rows(episode)], 1)                                                   # doctest: +SKIP
    >>> loss = -token_logprobs(model, batch).sum() / (batch.labels != IGNORED).sum()       # doctest: +SKIP
    """
    return _scored(model, batch, temperature, chunk, masks, Head.logprobs)


def token_scores(
    model: nn.Module,
    batch: Batch,
    temperature: float = 1.0,
    chunk: int = CHUNK,
    masks: DrawnMasks | None = None,
    learn_entropy: bool = False,
) -> tuple[Tensor, Tensor]:
    """:func:`token_logprobs`, and the entropy of each of these distributions in nats, both [T].

    The entropy has a gradient only with ``learn_entropy``, which keeps more of the forward pass in memory. Other
    arguments and errors are those of :func:`token_logprobs`; unlabelled positions have entropy 0.
    """
    score = Head.scores if learn_entropy else Head.watched_scores
    logprobs, entropy = _scored(model, batch, temperature, chunk, masks, score).unbind(-1)
    return logprobs, entropy


def _scored(
    model: nn.Module,
    batch: Batch,
    temperature: float,
    chunk: int,
    masks: DrawnMasks | None,
    score: Score,
) -> Tensor:
    """[T, ...] of the labelled positions' scores; 0 elsewhere."""
    if temperature <= 0:
        raise ValueError(f"temperature: expected more than 0, got {temperature}")
    labelled = (batch.labels[0] != IGNORED).nonzero()[:, 0]
    if masks is not None and len(masks.index) != len(labelled):
        raise ValueError(f"masks: expected those of {len(labelled)} labelled tokens, got {len(masks.index)}")
    head = _head(model)  # before: it runs the model itself
    return inside(model, lambda: _labelled(model, head, batch, labelled, temperature, chunk, masks, score))


def _labelled(
    model: Any,
    head: Head,
    batch: Batch,
    labelled: Tensor,
    temperature: float,
    chunk: int,
    masks: DrawnMasks | None,
    score: Score,
) -> Tensor:
    labels = batch.labels[0]
    hidden = run_packed(model.base_model, PackedAttention(batch)).last_hidden_state[0, labelled]
    targets = labels[labelled]
    rows = max(1, chunk // head.vocabulary)
    starts = range(0, len(labelled), rows)
    allowed = [None if masks is None else masks[start : start + rows] for start in starts]
    parts = zip(torch.split(hidden, rows), torch.split(targets, rows), allowed, strict=True) if starts else ()
    if len(labelled) <= rows:
        chunks = [score(head, part, target, temperature, bits) for part, target, bits in parts]
    else:
        chunks = [
            checkpoint(score, head, part, target, temperature, bits, use_reentrant=False)
            for part, target, bits in parts
        ]
    if not chunks:  # nothing is labelled
        chunks = [score(head, hidden, targets, temperature, None)]
    scores = torch.cat(chunks)
    return scores.new_zeros(labels.shape[0], *scores.shape[1:]).index_put((labelled,), scores)


@dataclass(frozen=True, eq=False)
class Head:
    """From hidden states to logits: ``softcap * tanh(scale * layer(hidden) / softcap)``; softcap None: no tanh."""

    layer: Any  # the output layer of a transformers model: hidden [n, hidden size] -> [n, V]
    scale: float
    softcap: float | None

    @property
    def vocabulary(self) -> int:
        """V."""
        return int(self.layer.weight.shape[0])

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [n, hidden size] -> [n, V], in float32 or float64."""
        logits: Tensor = self.layer(hidden)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        logits = logits * self.scale if self.scale != 1 else logits
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    def logprobs(self, hidden: Tensor, targets: Tensor, temperature: float, masks: Tensor | None = None) -> Tensor:
        """hidden [n, hidden size], targets [n] int64 -> log-probabilities of the targets [n].

        ``masks`` [n, ceil(V / 32)] int32: the tokens that softmax is over; None: all.
        """
        logits = self._tempered(hidden, temperature, masks)
        return logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(-1)

    def scores(self, hidden: Tensor, targets: Tensor, temperature: float, masks: Tensor | None = None) -> Tensor:
        """[n, 2]: :meth:`logprobs`, and the entropy of the distributions, in nats."""
        logprobs = self._tempered(hidden, temperature, masks).log_softmax(-1)
        return torch.stack([logprobs.gather(1, targets[:, None])[:, 0], _entropy(logprobs)], -1)

    def watched_scores(
        self, hidden: Tensor, targets: Tensor, temperature: float, masks: Tensor | None = None
    ) -> Tensor:
        """As :meth:`scores`; the entropy without gradient."""
        logprobs = self._tempered(hidden, temperature, masks).log_softmax(-1)
        with torch.no_grad():
            entropy = _entropy(logprobs)
        return torch.stack([logprobs.gather(1, targets[:, None])[:, 0], entropy], -1)

    def _tempered(self, hidden: Tensor, temperature: float, masks: Tensor | None) -> Tensor:
        logits = self.logits(hidden) / temperature
        return logits if masks is None else forbid(logits, masks)


def _entropy(logprobs: Tensor) -> Tensor:
    """[n] of log-probabilities [n, V], of which some may be -inf."""
    return -(logprobs.exp() * logprobs.masked_fill(logprobs == -torch.inf, 0.0)).sum(-1)


_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 4e-2}
_SCALES = ("logit_scale", "logits_scaling", "lm_head_multiplier")
_head_options: weakref.WeakKeyDictionary[nn.Module, tuple[float, float | None]] = weakref.WeakKeyDictionary()


def _head(model: Any) -> Head:
    """The output layer of a model with its scale and softcap, which are verified once against the model's logits."""
    layer = model.get_output_embeddings()
    if layer is None:
        raise ValueError(f"model: expected one with an output layer, got {type(model).__name__}")
    if model not in _head_options:
        _head_options[model] = _find_head_options(model, layer)
    return Head(layer, *_head_options[model])


@torch.no_grad()
def _find_head_options(model: Any, layer: Any) -> tuple[float, float | None]:
    """The (scale, softcap) that gives the model's logits, out of the configuration's values and no change at all."""
    config = model.config.get_text_config()
    named = [float(getattr(config, name)) for name in _SCALES if getattr(config, name, None)]
    cap = getattr(config, "final_logit_softcapping", None)
    batch = pack([[Row("", "", (1, 2, 3, 4), (False,) * 4)]], 1).to(model.device)
    with evaluating(model), torch.autocast(model.device.type, enabled=False):
        hidden = inside(model, lambda: run_packed(model.base_model, PackedAttention(batch)).last_hidden_state[0])
        expected = logits_of(model, batch)[0]
        errors: dict[tuple[float, float | None], float] = {}
        for scale in [1.0, *named, *(1 / value for value in named)]:
            for softcap in dict.fromkeys((None, cap)):
                got = inside(model, functools.partial(Head(layer, scale, softcap).logits, hidden))
                if got.shape == expected.shape:
                    errors[scale, softcap] = float((got - expected).abs().max() / expected.abs().max())
    best = min(errors, key=lambda options: errors[options], default=(1.0, None))
    difference = errors.get(best, torch.inf)
    if not difference <= _TOLERANCE[expected.dtype]:
        raise ValueError(
            f"model: expected logits of {type(model).__name__} to be those of its output layer, scaled or soft-capped "
            f"as its configuration says, got a relative difference of {difference:.1e}"
        )
    return best
