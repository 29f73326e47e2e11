"""Teacher-forced evaluation on held-out puzzles."""

from __future__ import annotations

import itertools
from collections import Counter

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from asyncthink.train.logprobs import logits_of
from asyncthink.train.packing import IGNORED, Row, pack
from asyncthink.train.demonstrations import DemonstrationPacker


def held_out_episodes(packer: DemonstrationPacker, seed: int, count: int) -> list[list[Row]]:
    """``count`` episodes of held-out puzzles, in the mixture of the training."""
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
    """Per kind of row: mean loss, share of right tokens, of rows without a wrong token (exact), with a right end.

    Solo and worker rows are determined by the question, so ``exact`` is the share of searches a greedy model gets
    wholly right. An organizer is free to choose its topology; there ``final`` counts: every token that follows the
    opening ``<ANSWER>`` or ``<RETURN>`` is right.
    """
    was_training = model.training
    model.eval()
    sums: dict[str, Counter[str]] = {}
    for episode in episodes:
        batch = pack([episode], 1).to(device)
        logits = logits_of(model, batch)[0]
        losses = functional.cross_entropy(logits, batch.labels[0], ignore_index=IGNORED, reduction="none")
        hits = logits.argmax(-1) == batch.labels[0]
        for row, span in zip(episode, batch.spans, strict=True):
            labels = batch.labels[0, span.start : span.stop]
            inside = labels != IGNORED
            labels, hit = labels[inside], hits[span.start : span.stop][inside]
            final = _after_final_tag(labels.tolist(), tokenizer)
            count = sums.setdefault(kind(row), Counter())
            count.update(rows=1, tokens=len(labels), right=int(hit.sum()))
            count.update(exact=int(hit.all()), final=int(hit[final:].all()))
            count["loss"] += float(losses[span.start : span.stop].sum())  # type: ignore[assignment]
    model.train(was_training)
    return {
        f"{name}/{figure}": value
        for name, count in sorted(sums.items())
        for figure, value in {
            "loss": count["loss"] / count["tokens"],
            "tokens": count["right"] / count["tokens"],
            "exact": count["exact"] / count["rows"],
            "final": count["final"] / count["rows"],
        }.items()
    }


def _after_final_tag(tokens: list[int], tokenizer: PreTrainedTokenizerBase) -> int:
    """Number of the first token behind the last ``<ANSWER>`` or ``<RETURN>``, however many tokens a tag is."""
    pieces = [str(tokenizer.decode([token])) for token in tokens]
    text = "".join(pieces)
    end = max(text.rfind(tag) + len(tag) for tag in ("<ANSWER>", "<RETURN>") if tag in text)
    lengths = itertools.accumulate(map(len, pieces))
    return next(number for number, length in enumerate(lengths, 1) if length >= end)
