"""Heads change no bit of an episode where linear layers round a row alike whatever the number of rows.

torch's own matrix product does not promise that, so the models here multiply every row by itself. What is left is what
the sampler is responsible for: in which nodes and chunks a context lies, what is copied, and who waits for whom.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tiny_models as tm
from asyncthink import Decoder, ForkJoinSampler, SamplingParams
from asyncthink.episode.options import Context, JoinMode
from asyncthink.episode.records import Episode
from asyncthink.model.files import load_tokenizer
from asyncthink.protocol.chat import chat_prompts
from asyncthink.protocol.prompts import PromptFormat
from scripted import PROMPTS, tokenizer
from toy_tokenizers import real_model

LONG = "the quick brown fox jumps over the lazy dog "
PARAMS = SamplingParams(temperature=1.0, max_tokens=30)


class RowByRow(nn.Linear):
    """A linear layer whose rows are products of their own."""

    def forward(self, rows: Tensor) -> Tensor:
        products = rows.new_empty(*rows.shape[:-1], self.out_features)
        for row, product in zip(rows.flatten(0, -2), products.flatten(0, -2), strict=True):
            product.copy_(nn.functional.linear(row.clone(), self.weight, self.bias))
        return products


def row_by_row(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = RowByRow
    return model


def writer(family: str) -> tuple[nn.Module, Any]:
    """A model that draws all characters alike, and its tokenizer."""
    tok = tokenizer()
    return row_by_row(tm.tiny(family, vocab_size=len(tok), eos_token_id=tok.eos_token_id, pad_token_id=None)), tok


def build(parts: tuple[nn.Module, Any], **options: Any) -> ForkJoinSampler:
    model, tok = parts
    decoder = Decoder(model, num_pages=options.pop("num_pages", 400), page_size=8, chunk=32)
    decoder.storage.poison()
    return ForkJoinSampler(decoder, tok, prompts=PROMPTS, **options)


def same(one: Episode, other: Episode) -> None:
    assert one.finish == other.finish
    for a, b in zip(one.traces, other.traces, strict=True):
        assert a.tokens == b.tokens
        assert a.logprobs == b.logprobs, "bitwise"


def keys(s: ForkJoinSampler, branch: Any) -> list[Tensor]:
    slots = s.cache.slots(branch)
    pages, offsets = slots // s.cache.page_size, slots % s.cache.page_size
    layers = range(len(s.decoder.storage.layers))
    return [store(layer)[pages, offsets] for layer in layers for store in (s.decoder.storage.k, s.decoder.storage.v)]


@pytest.mark.parametrize("family", ["qwen3", "gemma3", "phi3", "llama3_rope"])
def test_a_chat_of_three_turns(family: str) -> None:
    parts = writer(family)
    with_heads, without = build(parts, mode="sequential"), build(parts, mode="sequential", prefix_pages=0)
    question = LONG * 2
    for turn in range(3):
        (one,) = with_heads.generate([question], PARAMS.with_seed(turn))
        (other,) = without.generate([question], PARAMS.with_seed(turn))
        same(one, other)
        prompt = len(one.traces[0].tokens) - one.total_tokens
        new = prompt - one.prefix_tokens
        assert other.prefix_tokens == 2 and (turn == 0 or new < 12)
        question = f"{question}\n{one.traces[0].text} and {turn}"


def test_keys_and_values_of_a_second_turn() -> None:
    parts = writer("qwen3")
    with_heads, without = build(parts, mode="sequential"), build(parts, mode="sequential", prefix_pages=0)
    (one,) = with_heads.generate([LONG], PARAMS)
    samplers = with_heads, without
    streams = [s.stream(f"{LONG}\n{one.traces[0].text} and", PARAMS) for s in samplers]
    for s in samplers:
        for _ in range(9):
            s.step()
    branches = [s.scheduler.running[0].agents[0].branch for s in samplers]
    assert streams[0].episode.prefix_tokens > len(LONG)
    for a, b in zip(*(keys(s, branch) for s, branch in zip(samplers, branches, strict=True)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("max_rows", [11, 1024])
def test_a_group_and_questions_that_begin_alike(max_rows: int) -> None:
    parts = writer("qwen3")
    questions = [LONG * 2, LONG * 2, f"{LONG * 2}x", LONG * 2, LONG, f"{LONG}other"]
    params = [PARAMS.with_seed(k) for k in range(len(questions))]
    together = build(parts, mode="sequential", max_rows=max_rows)
    alone = build(parts, mode="sequential", prefix_pages=0)
    expected = [alone.generate([question], own)[0] for question, own in zip(questions, params, strict=True)]
    for _ in range(2):  # the second time everything is found
        episodes = together.generate(questions, params)
        for episode, other in zip(episodes, expected, strict=True):
            same(episode, other)
    assert all(e.prefix_tokens >= len(q) + 2 for e, q in zip(episodes, questions, strict=True))
    assert together.stats.saved_tokens > alone.stats.saved_tokens


@pytest.mark.parametrize("context", Context)
@pytest.mark.parametrize("join", JoinMode)
def test_organizers_and_workers(join: JoinMode, context: Context) -> None:
    model, tok = tm.organizer()
    parts = row_by_row(model), tok
    options: dict[str, Any] = {"join": join, "context": context}
    together, alone = build(parts, **options), build(parts, **options, prefix_pages=0)
    questions = [LONG, LONG, f"{LONG}x"] * 2
    params = [SamplingParams(temperature=0.8, seed=k, max_tokens=50) for k in range(len(questions))]
    groups = [together.generate(questions, params), together.generate(questions, params)]
    joined = 0
    for number, (question, own) in enumerate(zip(questions, params, strict=True)):
        (expected,) = alone.generate([question], own)
        joined += expected.joins
        for episode in (group[number] for group in groups):
            same(episode, expected)
    assert joined
    together.cache.check()
    for s in (together, alone):
        s.prefixes.clear()
        assert s.cache.used_pages == 0


def test_heads_that_were_evicted_or_paused() -> None:
    parts = writer("qwen3")
    questions = [f"{letter} {LONG}" for letter in "abcab"]
    params = [PARAMS.with_seed(k) for k in range(len(questions))]
    tight, alone = (build(parts, mode="sequential", num_pages=pages) for pages in (24, 400))
    episodes = [*tight.generate(questions, params), *tight.generate(questions, params)]
    assert tight.stats.preemptions and tight.stats.evictions
    expected = [alone.generate([question], own)[0] for question, own in zip(questions, params, strict=True)]
    for episode, other in zip(episodes, [*expected, *expected], strict=True):
        same(episode, other)
    tight.prefixes.clear()
    assert tight.cache.used_pages == 0


def test_a_pinned_document_changes_bits_for_all_alike() -> None:
    """What is pinned decides the layout, so results depend on it to rounding; on other episodes they still do not."""
    parts = writer("qwen3")
    questions = [f"{LONG}{end}" for end in ("one", "two", "two")]
    params = [PARAMS.with_seed(k) for k in range(3)]
    plain, together, alone = (build(parts, mode="sequential", prefix_pages=pages) for pages in (0, None, 0))
    together.pin(LONG)
    alone.pin(LONG)
    for k, episode in enumerate(together.generate(questions, params)):
        (other,) = alone.generate([questions[k]], params[k])
        same(episode, other)
        assert other.prefix_tokens == len("S:" + LONG)
        (unpinned,) = plain.generate([questions[k]], params[k])
        for a, b in itertools.product(episode.traces, unpinned.traces):
            assert a.tokens == b.tokens and a.logprobs == pytest.approx(b.logprobs, abs=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(real_model() is None, reason="SmolLM2-135M-Instruct is not there")
def test_a_chat_with_a_pretrained_model() -> None:
    """torch's own matrix products: the same greedy words, log-probabilities to rounding."""
    decoder = Decoder.load(str(real_model()), dtype="float32", device="cpu", num_pages=128)
    tok = load_tokenizer(str(real_model()))
    prompts = chat_prompts(tok, PromptFormat("{question}", "{subquery}", "{subquery}", "{question}"))
    kept, without = (
        ForkJoinSampler(decoder, tok, prompts=prompts, mode="sequential", prefix_pages=pages) for pages in (None, 0)
    )
    params = SamplingParams(temperature=0.0, max_tokens=24)
    messages = [{"role": "system", "content": LONG * 10}, {"role": "user", "content": "Which animals are named?"}]
    for _ in range(2):
        (one,), (other,) = kept.generate([messages], params), without.generate([messages], params)
        assert one.traces[0].tokens == other.traces[0].tokens
        assert one.traces[0].logprobs == pytest.approx(other.traces[0].logprobs, abs=1e-3)
        messages += [{"role": "assistant", "content": one.traces[0].text}, {"role": "user", "content": "And then?"}]
    assert one.prefix_tokens > 100 > len(one.traces[0].tokens) - one.traces[0].decoded - one.prefix_tokens
