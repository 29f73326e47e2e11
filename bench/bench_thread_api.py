"""Drafts behind one prefix through the thread API, beside transformers' `generate` on the same model.

`pytest bench/bench_thread_api.py --benchmark` runs the Qwen3-0.6B shape with random weights. What is timed is the whole
of a program: the prefix, which ours computes once, and the tokens of all drafts. Each draft begins with a token of its
own. "loop" calls `generate` once a draft; "batch" calls it once with all drafts as rows. Both compute the prefix for
every draft. K/V are what each holds at its end, of one draft at a time in the loop. Each runs once. Without the
flag a tiny model runs, and all must write the same tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

import machine
from asyncthink import ForkJoinSampler, SamplingParams
from bench_fork_join import PROMPTS
from clock import Spread
from random_models import SHAPE, TINY, random_qwen3

DRAFTS, NEW = 8, 32

Tokens = list[list[int]]


@pytest.mark.timeout(1800)
@pytest.mark.quick(prefix=[512])
@pytest.mark.parametrize("prefix", [512, 4096])
def test_drafts(benchmark, table, prefix):
    timed = benchmark.enabled
    prefix, new = (prefix, NEW) if timed else (prefix // 16, 6)
    model = random_qwen3(SHAPE if timed else TINY, torch.bfloat16 if timed else torch.float32)
    model.generation_config.eos_token_id = None
    tokenizer = character_tokenizer(model.config.vocab_size)
    engine = ForkJoinSampler(model, tokenizer, prompts=PROMPTS, num_pages=(prefix + DRAFTS * (new + 32)) // 16 + 8)
    ids = torch.randint(3, model.config.vocab_size, (prefix,), generator=torch.Generator().manual_seed(0)).tolist()
    text, heads = tokenizer.decode(ids), list(range(3, 3 + DRAFTS))
    assert tokenizer(text).input_ids == ids
    beginnings = [tokenizer.decode([head]) for head in heads]

    def threads() -> Tokens:
        with engine.thread(text) as root:
            drafts = [draft.write(begin) for draft, begin in zip(root.fork(DRAFTS), beginnings, strict=True)]
            engine.think(drafts, SamplingParams(temperature=0.0, max_tokens=new))
            written = [draft.tokens[draft.begin + 1 :] for draft in drafts]
            for draft in drafts:
                draft.close()
        return written

    def loop() -> Tokens:
        return [written for head in heads for written in generate(model, [[*ids, head]], new)]

    def batch() -> Tokens:
        return generate(model, [[*ids, head] for head in heads], new)

    programs = {"threads": threads, "loop": loop, "batch": batch}
    if not timed:
        assert loop() == batch() == benchmark.pedantic(threads)
        assert engine.cache.used_pages == 0
        return
    times = in_turn(benchmark, programs)
    size = engine.decoder.storage.bytes_per_token
    table.add(row(prefix, times, size, engine.cache.stats.peak_pages * engine.cache.page_size))
    table.note("transformers: `generate` with a DynamicCache and SDPA, greedy; the K/V of its loop are one draft's.")


def character_tokenizer(size: int) -> PreTrainedTokenizerFast:
    """One token a character, as many as the model has."""
    points = (point for point in range(0x100, 0x110000) if not 0xD800 <= point < 0xE000)
    backend = Tokenizer(models.WordLevel({chr(point): k for k, point in zip(range(size), points, strict=False)}))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


@torch.inference_mode()
def generate(model: Qwen3ForCausalLM, rows: Tokens, new: int) -> Tokens:
    """What transformers writes behind each row, greedily."""
    given = torch.tensor(rows)
    out = model.generate(
        given, attention_mask=torch.ones_like(given), max_new_tokens=new, do_sample=False, pad_token_id=0
    )
    return out[:, given.shape[1] :].tolist()


def in_turn(benchmark, programs: dict[str, Callable[[], Tokens]]) -> dict[str, Spread]:
    """Seconds of each program, once: the peers take minutes."""
    seconds: dict[str, list[float]] = {}
    for name, program in programs.items():
        if name != "threads":
            start = time.perf_counter()
            program()
            seconds[name] = [time.perf_counter() - start]
    benchmark.pedantic(programs["threads"], rounds=1)
    return {"threads": Spread.of(benchmark.stats.stats.data)} | {n: Spread.of(found) for n, found in seconds.items()}


def row(prefix: int, times: dict[str, Spread], token_bytes: int, held: int) -> dict[str, str | float]:
    """``held`` is the largest number of tokens whose K/V our cache had."""
    ours, whole, mib = times["threads"], prefix + 1 + NEW, token_bytes / 2**20
    return {
        "drafts": DRAFTS,
        "prefix": prefix,
        "new tokens": NEW,
        "threads s": ours.median,
        "p20": ours.p20,
        "p80": ours.p80,
        "generate loop s": times["loop"].median,
        "generate batch s": times["batch"].median,
        "x loop": times["loop"].median / ours.median,
        "x batch": times["batch"].median / ours.median,
        "threads K/V MiB": held * mib,
        "loop K/V MiB": whole * mib,
        "batch K/V MiB": DRAFTS * whole * mib,
        "device": machine.device(),
        "threads used": machine.threads(),
    }
