"""A chat of two turns over a long document: the second turn with the first one's head, and without.

`pytest bench/bench_prefix_cache.py --benchmark` runs the Qwen3-0.6B shape with random weights (bfloat16) over 4,000
tokens. A turn is timed from its call to its first token. Without the flag a tiny model runs, and both must draw the
same tokens. The numbers of tokens are those that the model computes, not those of the prompt.
"""

from __future__ import annotations

import time

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import machine
from asyncthink import Decoder, ForkJoinSampler, SamplingParams
from asyncthink.protocol.prompts import PromptFormat
from clock import Spread
from random_models import SHAPE, TINY, random_qwen3

PROMPTS = PromptFormat("{question}", "", "{subquery}", "{question}")
DOCUMENT, REPLY, QUESTION = 4000, 32, 20  # tokens
ROUNDS = 5


def words(count: int) -> PreTrainedTokenizerFast:
    """A tokenizer of ``count`` words, any sequence of which is a text."""
    backend = Tokenizer(models.WordLevel({f" w{k}": k for k in range(count)}, unk_token=" w0"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r" w\d+"), "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def text(vocabulary: int, length: int, seed: int) -> str:
    numbers = torch.randint(vocabulary, (length,), generator=torch.Generator().manual_seed(seed))
    return "".join(f" w{number}" for number in numbers.tolist())


def turn(sampler: ForkJoinSampler, prompt: str, count: int) -> tuple[float, int, str, list[int]]:
    """Seconds to the first token, tokens computed until then, the reply, its tokens."""
    with sampler.stream(prompt, SamplingParams(temperature=0.0, max_tokens=count)) as stream:
        start = time.perf_counter()
        next(event for event in stream if getattr(event, "sampled", False))
        seconds = time.perf_counter() - start
        list(stream)
    trace = stream.episode.traces[0]
    computed = len(trace.tokens) - trace.decoded - stream.episode.prefix_tokens
    return seconds, computed, trace.text, trace.tokens


def test_a_second_turn(benchmark, table, quick):
    timed = benchmark.enabled
    model = random_qwen3(SHAPE if timed else TINY, torch.bfloat16 if timed else torch.float32)
    vocabulary, document = model.config.vocab_size, DOCUMENT if timed else DOCUMENT // 8
    tok = words(vocabulary)
    decoder = Decoder(model, num_pages=4 * DOCUMENT // 16)
    kept, without = (
        ForkJoinSampler(decoder, tok, prompts=PROMPTS, mode="sequential", prefix_pages=pages) for pages in (None, 0)
    )
    seconds: dict[str, list[float]] = {"first": [], "second": [], "without": []}
    counts: dict[str, int] = {}

    def chat(number: int) -> None:
        prompt = text(vocabulary, document, number)
        time_first, counts["first"], reply, _ = turn(kept, prompt, REPLY)
        again = prompt + reply + text(vocabulary, QUESTION, -1 - number)
        time_second, counts["second"], _, one = turn(kept, again, REPLY)
        time_without, counts["without"], _, other = turn(without, again, REPLY)
        assert timed or one == other
        for name, value in zip(seconds, (time_first, time_second, time_without), strict=True):
            seconds[name].append(value)

    rounds = iter(range(2 if quick or not timed else ROUNDS))
    benchmark.pedantic(chat, setup=lambda: ((next(rounds),), {}), rounds=2 if quick or not timed else ROUNDS)
    assert counts == {"first": document, "second": QUESTION + 1, "without": document + REPLY + QUESTION}
    if timed:
        times = {name: Spread.of(values) for name, values in seconds.items()}
        row = {
            "document": document,
            "first turn tokens": counts["first"],
            "first turn s": times["first"].median,
            "second turn tokens": counts["second"],
            "second turn s": times["second"].median,
            "without tokens": counts["without"],
            "without s": times["without"].median,
            "x": times["without"].median / times["second"].median,
            "device": machine.device(),
            "threads": machine.threads(),
        }
        benchmark.extra_info |= row
        table.add(row)


@pytest.mark.parametrize("count", [16])
def test_a_group(benchmark, table, count):
    """Seconds of ``count`` episodes of one question that are submitted together, each with one token."""
    timed = benchmark.enabled
    model = random_qwen3(SHAPE if timed else TINY, torch.bfloat16 if timed else torch.float32)
    vocabulary, length = model.config.vocab_size, 1000 if timed else 200
    decoder = Decoder(model, num_pages=(count + 2) * (length // 16 + 2))
    params = [SamplingParams(max_tokens=1, seed=k) for k in range(count)]
    question, tok = text(vocabulary, length, 0), words(vocabulary)

    def group(pages: int | None) -> tuple[float, int, list[list[int]]]:
        sampler = ForkJoinSampler(decoder, tok, prompts=PROMPTS, mode="sequential", prefix_pages=pages)
        start = time.perf_counter()
        episodes = sampler.generate([question] * count, params)
        seconds, stats = time.perf_counter() - start, sampler.stats
        sampler.prefixes.clear()
        return seconds, stats.prompt_tokens - stats.prefix_tokens, [e.traces[0].tokens for e in episodes]

    shared = benchmark.pedantic(group, args=(None,), rounds=1)
    alone = group(0)
    assert (shared[1], alone[1]) == (length + count - 1, length * count)
    assert timed or shared[2] == alone[2]
    if timed:
        row = {"group": count, "prompt": length, "tokens": shared[1], "s": shared[0]}
        row |= {"without tokens": alone[1], "without s": alone[0], "x": alone[0] / shared[0]}
        benchmark.extra_info |= row
        table.add(row | {"device": machine.device(), "threads": machine.threads()})
