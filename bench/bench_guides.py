"""What the token masks of a guide cost: their share of a step of 8 agents on a vocabulary of 151,936.

`pytest bench/bench_guides.py --benchmark` runs the Qwen3-0.6B shape with random weights, 8 agents that write at once
under the guide, and times within the same steps the part that looks masks up and applies them. Without the flag a tiny
model runs, and the draws must keep to the masks. The goal is at most 5% of a step.
"""

from __future__ import annotations

import random
import time
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from asyncthink import ForkJoinSampler, SamplingParams
from asyncthink.protocol.prompts import PromptFormat
from clock import Spread
from contest import DEVICE
from random_models import SHAPE, TINY

AGENTS, STEPS, WARM, GOAL = 8, 24, 4, 0.05
PROMPTS = PromptFormat("{question}", "W:", "{subquery}", "{question}")


def tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level, without merges: the 256 bytes, an end, and random words of letters, a few with a "<"."""
    rng = random.Random(0)
    words = dict.fromkeys([*sorted(pre_tokenizers.ByteLevel.alphabet()), "<end>"])
    while len(words) < vocabulary:
        angle = rng.choice("<>") if rng.random() < 0.005 else ""  # as in Qwen3's vocabulary
        words[angle + "".join(rng.choices("abcdefghijklmnopqrstuvwxyz\u0120", k=rng.randint(2, 9)))] = None
    backend = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")


def shares(sampler: ForkJoinSampler) -> tuple[list[float], list[float]]:
    """Seconds of each step of 8 agents, and of the guide within it."""
    steps, guided = [], []
    mask = sampler.engine.guided

    def timed(*rows: Any) -> torch.Tensor:
        synchronize()
        start = time.perf_counter()
        logits = mask(*rows)
        synchronize()
        guided.append(time.perf_counter() - start)
        return logits

    sampler.engine.guided = timed  # type: ignore[assignment]
    streams = [sampler.stream("Say something long.", SamplingParams(seed=seed)) for seed in range(AGENTS)]
    for _ in range(WARM + STEPS):
        start = time.perf_counter()
        sampler.step()
        synchronize()
        steps.append(time.perf_counter() - start)
    for stream in streams:
        stream.close()
    return steps[WARM:], guided[WARM:]


def synchronize() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


@pytest.mark.quick(guide=["legal"])
@pytest.mark.parametrize("guide", ["legal", "plan"])
def test_masks(timed, table, guide):
    shape = SHAPE if timed else TINY
    tok = tokenizer(shape["vocab_size"] if timed else 512)
    torch.manual_seed(0)
    config = Qwen3Config(**(shape | {"vocab_size": max(len(tok), shape["vocab_size"])}), eos_token_id=tok.eos_token_id)
    with torch.device(DEVICE):
        model = Qwen3ForCausalLM(config).to(torch.bfloat16 if timed else torch.float32).eval()
    sampler = ForkJoinSampler(model, tok, prompts=PROMPTS, guide=guide, num_pages=512)
    steps, masks = shares(sampler)
    assert len(masks) == STEPS
    if not timed:
        return
    step, mask = Spread.of(steps), Spread.of(masks)
    share = mask.median / step.median
    goal = "met" if share <= GOAL else "missed"
    row: dict[str, str | float] = {"guide": guide, "agents": AGENTS, "vocabulary": config.vocab_size}
    row |= {"step ms": 1e3 * step.median, "masks ms": 1e3 * mask.median, "p80": 1e3 * mask.p80}
    table.add(row | {"share": share, "goal": f"{GOAL:.0%}: {goal}"})
