"""The checkpoint in the box: small, and right on held-out puzzles."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

import asyncthink
from asyncthink.engine.loaded import LoadedModel
from asyncthink.engine.sampler import SamplingParams
from asyncthink.eval.evaluation import evaluate, settings
from asyncthink.tasks import task
from asyncthink.tasks.held_out import held_out
from asyncthink.train.packed_attention import use_packed_attention

BOX = Path(asyncthink.__file__).parent / "checkpoints" / "countdown"


def test_the_box_is_small() -> None:
    assert sum(file.stat().st_size for file in BOX.iterdir()) <= 8 * 2**20


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
