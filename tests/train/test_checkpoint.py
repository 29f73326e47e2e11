"""The checkpoint in the box: small, right on held-out puzzles, and trained on what the sampler sees."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

import asyncthink
from asyncthink.engine.loaded import LoadedModel
from asyncthink.engine.sampler import ForkJoinSampler, SamplingParams
from asyncthink.eval.evaluation import evaluate, settings
from asyncthink.tasks import task
from asyncthink.tasks.held_out import held_out
from asyncthink.train.logprobs import logits_of
from asyncthink.train.packed_attention import use_packed_attention
from asyncthink.train.packing import pack
from asyncthink.train.rows import rows

BOX = Path(asyncthink.__file__).parent / "checkpoints" / "countdown"


def test_the_box_is_small() -> None:
    assert sum(file.stat().st_size for file in BOX.iterdir()) <= 8 * 2**20


@pytest.mark.parametrize("context", ["shared", "isolated"])
@pytest.mark.parametrize("join", ["exact", "append", "link"])
def test_training_sees_what_the_sampler_saw(context: str, join: Literal["exact", "append", "link"]) -> None:
    """Log-probabilities of sampled episodes, computed again from packed rows, agree token by token."""
    sampler = ForkJoinSampler(BOX, context=context, join=join, num_pages=2048)
    puzzles = [task("countdown").sample(seed) for seed in range(6)]
    questions = [task("countdown").prompt(puzzle) for puzzle in puzzles]
    episodes = sampler.generate(questions, SamplingParams(temperature=1.0, max_tokens=400, seed=5))
    model = AutoModelForCausalLM.from_pretrained(BOX, dtype="auto")
    use_packed_attention(model, moves=True)
    joins = 0
    for episode in episodes:
        made = rows(episode)
        batch = pack([made], 1)
        with torch.no_grad():
            scores = logits_of(model, batch)[0].log_softmax(-1)
        for trace, span in zip(episode.traces, batch.spans, strict=True):
            joins += sum(one.source is not None for one in trace.joins)
            drawn = [k for k in range(1, len(trace.tokens)) if trace.sampled[k]]
            again = scores[[span.start + k - 1 for k in drawn], [trace.tokens[k] for k in drawn]]
            torch.testing.assert_close(again, torch.tensor([trace.logprobs[k] for k in drawn]), atol=2e-3, rtol=1e-3)
    assert (joins > 0) == (join != "exact")


@pytest.mark.parametrize(
    ("contexts", "joins"),
    [("shared", "exact"), pytest.param("shared,isolated", "exact,append,link", marks=pytest.mark.slow)],
)
def test_it_solves_held_out_puzzles(contexts: str, joins: str) -> None:
    served, params = LoadedModel.load(BOX), SamplingParams(temperature=0.0, max_tokens=700)
    countdown = task("countdown")
    options = settings("sequential,asyncthink", contexts, joins)
    puzzles = held_out(countdown, 20)
    alone, *organized = [evaluate(served.sampler(**o), countdown, puzzles, params) for o in options]
    assert alone["at_least"]["4"]["value"] >= 0.9
    assert len(organized) == len(contexts.split(",")) * len(joins.split(","))
    for figures in organized:
        assert figures["at_least"]["4"]["value"] >= 0.9
        assert figures["forks"]["value"] >= 2
        assert figures["critical_path_tokens"]["value"] < 0.75 * alone["critical_path_tokens"]["value"]


def test_a_model_without_rotary_positions_cannot_move_keys() -> None:
    config = GPT2Config(vocab_size=64, n_positions=512, n_embd=16, n_layer=1, n_head=2)
    with pytest.raises(ValueError, match="rotary"):
        use_packed_attention(GPT2LMHeadModel(config).eval(), moves=True)
