"""Teacher-forced evaluation on demonstrations of held-out puzzles."""

from __future__ import annotations

import itertools
from collections import Counter

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from asyncthink.train.demonstrations import DemonstrationPacker
from asyncthink.train.logprobs import logits_of
from asyncthink.train.packing import IGNORED, Row, pack


def held_out_episodes(packer: DemonstrationPacker, seed: int, count: int) -> list[list[Row]]:
    """``count`` episodes of held-out puzzles, in the training's mixture."""
    return list(itertools.islice(packer.stream(f"evaluation {seed}", held_out=True), count))


def kind(row: Row) -> str:
    """ "solo", "organizer", "worker_shared" or "worker_isolated"."""
    return f"worker_{row.context}" if row.role == "worker" else row.role


@torch.no_grad()
def evaluate(
    model: nn.Module,
    episodes: list[list[Row]],
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """Metrics per kind of row (:func:`kind`), named ``KIND/METRIC``.

    * ``loss``: mean cross-entropy of the learned tokens.
    * ``tokens``: share of learned tokens whose most likely prediction is right.
    * ``exact``: share of rows in which all are right. Solo and worker rows are determined by the question, so this is
      the share of searches that a greedy model gets completely right.
    * ``final``: share of rows in which all tokens after the last opening ``<ANSWER>`` or ``<RETURN>`` are right. It is
      the metric for organizers, which are free to choose their topology.
    """
    was_training = model.training
    model.eval()
    sums: dict[str, Counter[str]] = {}
    for episode in episodes:
        batch = pack([episode], 1).to(device)
        logits = logits_of(model, batch)[0]
        losses = functional.cross_entropy(logits, batch.labels[0], ignore_index=IGNORED, reduction="none")
        right = logits.argmax(-1) == batch.labels[0]
        for row, span in zip(episode, batch.spans, strict=True):
            labels = batch.labels[0, span.start : span.stop]
            learned = labels != IGNORED
            labels, row_right = labels[learned], right[span.start : span.stop][learned]
            final = _after_final_tag(labels.tolist(), tokenizer)
            count = sums.setdefault(kind(row), Counter())
            count.update(rows=1, tokens=len(labels), right=int(row_right.sum()))
            count.update(exact=int(row_right.all()), final=int(row_right[final:].all()))
            count["loss"] += float(losses[span.start : span.stop].sum())  # type: ignore[assignment]
    model.train(was_training)
    return {
        f"{name}/{metric}": value
        for name, count in sorted(sums.items())
        for metric, value in {
            "loss": count["loss"] / count["tokens"],
            "tokens": count["right"] / count["tokens"],
            "exact": count["exact"] / count["rows"],
            "final": count["final"] / count["rows"],
        }.items()
    }


def _after_final_tag(tokens: list[int], tokenizer: PreTrainedTokenizerBase) -> int:
    """Index of the first token after the last ``<ANSWER>`` or ``<RETURN>``. A tag may be several tokens."""
    pieces = [str(tokenizer.decode([token])) for token in tokens]
    text = "".join(pieces)
    end = max(text.rfind(tag) + len(tag) for tag in ("<ANSWER>", "<RETURN>") if tag in text)
    lengths = itertools.accumulate(map(len, pieces))
    return next(number for number, length in enumerate(lengths, 1) if length >= end)
