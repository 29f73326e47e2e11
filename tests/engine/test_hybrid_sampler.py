"""Episodes, threads, guides, heads and preemption on models with recurrent layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from asyncthink import Episode, ForkJoinSampler, SamplingParams
from asyncthink.engine.scoring import score
from asyncthink.episode.options import Context
from asyncthink.model.decoder import Decoder
from asyncthink.protocol.prompts import PromptFormat
from scripted import PROMPTS
from tiny_hybrids import alone, taught_hybrid

PARAMS = SamplingParams(temperature=1.0, max_tokens=60, seed=11)
LONG = PromptFormat("O" * 40 + ":{question}\n", "W:", "I" * 40 + "{subquery}:", "S" * 40 + ":{question}\n")
Parts = tuple[nn.Module, Any]


@pytest.fixture(scope="module", params=["qwen3_5", "jamba"])
def parts(request: pytest.FixtureRequest) -> Parts:
    return taught_hybrid(request.param)


@pytest.fixture(scope="module")
def hybrid() -> Parts:
    return taught_hybrid("qwen3_5")


def build(parts: Parts, *, states: int = 64, pages: int = 2000, **options: Any) -> ForkJoinSampler:
    model, tok = parts
    options = {"prompts": PROMPTS, **options}
    return ForkJoinSampler(Decoder(model, num_pages=pages, num_states=states), tok, **options)


def assert_plain(model: nn.Module, episodes: list[Episode], temperature: float = 1.0) -> None:
    """Log-probabilities are those of the model called with each whole context."""
    for episode in episodes:
        contexts: list[list[int]] = []
        for trace in episode.traces:
            shared = trace.parent is not None and episode.context == "shared"
            before = contexts[trace.parent][: trace.fork_at] if shared and trace.parent is not None else []
            contexts.append([*before, *trace.tokens])
            logits = alone(model, torch.tensor(contexts[-1])) / temperature
            logp = torch.log_softmax(logits.double(), -1)
            for k, drawn in enumerate(trace.sampled):
                if drawn:
                    expected = float(logp[len(before) + k - 1, trace.tokens[k]])
                    assert trace.logprobs[k] == pytest.approx(expected, abs=1e-4)


def assert_same_draws(episodes: list[Episode], plenty: list[Episode]) -> None:
    """A pause changes when an agent draws, so where a cancelled one ends, but not what it draws."""
    for episode, expected in zip(episodes, plenty, strict=True):
        for trace, other in zip(episode.traces, expected.traces, strict=False):
            least = min(len(trace.tokens), len(other.tokens))
            assert trace.tokens[:least] == other.tokens[:least]


def finish(s: ForkJoinSampler) -> None:
    s.cache.check()
    s.prefixes.clear()
    assert s.cache.used_pages == 0
    assert s.engine.stats.free_states == s.engine.stats.num_states


@pytest.mark.parametrize("context", Context)
def test_logprobs_equal_plain_calls_and_seeds_repeat(parts: Parts, context: str) -> None:
    s = build(parts, context=context)
    sets = [PARAMS.with_seed(k) for k in range(16)]
    batch = s.generate(["q"] * 16, sets)
    assert sum(episode.joins for episode in batch) > 1
    assert_plain(parts[0], batch)
    (one,) = s.generate(["q"], sets[3])
    assert [trace.tokens for trace in one.traces] == [trace.tokens for trace in batch[3].traces]
    finish(s)


def test_greedy_traces_are_transformers_own(parts: Parts) -> None:
    model, _ = parts
    s = build(parts, mode="sequential")
    (episode,) = s.generate(["q"], SamplingParams(temperature=0.0, max_tokens=24))
    trace = episode.traces[0]
    prompt = trace.tokens[: trace.sampled.index(True)]
    drawn = trace.tokens[len(prompt) :]
    out = model.generate(torch.tensor([prompt]), max_new_tokens=len(drawn), do_sample=False, pad_token_id=0)  # type: ignore[operator]
    assert drawn == out[0, len(prompt) :].tolist()[: len(drawn)]


def test_bytes_of_states_are_counted(hybrid: Parts) -> None:
    s = build(hybrid)
    episodes = s.generate(["q"] * 8, [PARAMS.with_seed(k) for k in range(8)])
    stats, states = s.engine.stats, s.decoder.states
    assert states is not None
    assert sum(episode.state_bytes_copied for episode in episodes) == stats.state_bytes_copied
    for episode in episodes:
        assert episode.state_bytes_copied >= episode.forks * states.bytes_per_state
        assert episode.kv_bytes_copied == 0
        assert episode.to_dict()["state_bytes_copied"] == episode.state_bytes_copied
        assert Episode.from_dict(episode.to_dict()) == episode
    assert stats.passes >= stats.steps


def test_a_prompt_again_begins_from_the_snapshot_before_its_last_token(hybrid: Parts) -> None:
    s = build(hybrid, prompts=LONG)
    first = s.generate(["question"], PARAMS)[0]
    again = s.generate(["question"] * 3, [PARAMS.with_seed(k) for k in (11, 1, 2)])
    prompt = first.traces[0].sampled.index(True)
    assert all(episode.prefix_tokens == prompt - 1 for episode in again)
    assert again[0].traces[0].tokens == first.traces[0].tokens
    assert_plain(hybrid[0], again)
    other = s.generate(["qu"], PARAMS)[0]  # ends before the snapshot: only the template's prefix has a state
    assert other.prefix_tokens == len(s.codec.encode([(LONG.prefix("organizer"), True)]))
    finish(s)


def test_equal_prompts_at_once_wait_for_the_first(hybrid: Parts) -> None:
    s = build(hybrid, prompts=LONG)
    episodes = s.generate(["a question that is long enough"] * 4, [PARAMS.with_seed(k) for k in range(4)])
    prompt = episodes[0].traces[0].sampled.index(True)
    assert [episode.prefix_tokens for episode in episodes[1:]] == [prompt - 1] * 3
    assert_plain(hybrid[0], episodes)


@pytest.mark.parametrize("states", [3, 5])
def test_without_slots_episodes_take_turns(hybrid: Parts, states: int) -> None:
    """Out of states is an ordinary event: the newest episode gives its own back and goes on later."""
    plenty = build(hybrid).generate(["q"] * 6, [PARAMS.with_seed(k) for k in range(6)])
    s = build(hybrid, states=states)
    episodes = s.generate(["q"] * 6, [PARAMS.with_seed(k) for k in range(6)])
    assert_same_draws(episodes, plenty)
    assert any(episode.finish != "out_of_pages" for episode in episodes)
    assert states == 3 or s.engine.stats.preemptions, "with 3 slots they run one by one"
    assert_plain(hybrid[0], episodes)
    finish(s)


def test_without_pages_episodes_take_turns(hybrid: Parts) -> None:
    questions = ["q" * k for k in range(1, 7)]
    plenty = build(hybrid).generate(questions, [PARAMS.with_seed(k) for k in range(6)])
    s = build(hybrid, pages=6)
    episodes = s.generate(questions, [PARAMS.with_seed(k) for k in range(6)])
    assert s.engine.stats.preemptions
    assert_same_draws(episodes, plenty)
    finish(s)


def test_a_guide_and_nested_forks(hybrid: Parts) -> None:
    s = build(hybrid, guide="legal", depth=2)
    episodes = s.generate(["q"] * 6, [PARAMS.with_seed(k) for k in range(6)])
    assert not any(episode.format_errors for episode in episodes)
    assert any(episode.forks for episode in episodes)
    finish(s)


def test_threads_fork_rewind_join_and_score(parts: Parts) -> None:
    """Every thought is what the model draws behind the same tokens, whatever was forked, cut back or given up."""
    model, _ = parts
    s = build(parts, states=6)
    greedy = SamplingParams(temperature=0.0, max_tokens=5)

    def check(thread: Any) -> None:
        thread.think(greedy)
        ids = list(thread.tokens)
        for k in range(thread.thought.start, thread.thought.stop):
            assert ids[k] == int(alone(model, torch.tensor(ids[:k]))[-1].argmax())

    thread = s.thread("k x y z " * 3)
    check(thread)
    forks = thread.fork(3)
    for number, fork in enumerate(forks):
        fork.write("x" * (number + 1))
        check(fork)
    check(thread)
    thread.truncate(len(thread) - 4)
    check(thread)
    (below,) = forks[1].fork()
    forks[1].truncate(3)
    check(forks[1])
    check(below)
    thread.join(forks[2])
    check(thread)
    with pytest.raises(ValueError, match="recurrent layers"):
        thread.join(forks[2], mode="link")
    scores = thread.score(["x", "yz"])
    ids, own = list(thread.tokens), list(scores[1].tokens)
    logp = torch.log_softmax(alone(model, torch.tensor([*ids, *own])).double(), -1)
    expected = [float(logp[len(ids) + k - 1, token]) for k, token in enumerate(own)]
    assert list(scores[1].logprobs) == pytest.approx(expected, abs=1e-4)
    for one in (thread, below, *forks):
        one.close()
    finish(s)


def test_scores_of_given_tokens(hybrid: Parts) -> None:
    s = build(hybrid)
    ids = torch.randint(3, 20, (300,), generator=torch.Generator().manual_seed(0))
    with s.decoder.gate.enter():
        scores = score(s, ids.tolist())
    logp = torch.log_softmax(alone(hybrid[0], ids), -1)
    assert scores.logprobs == pytest.approx(logp[:-1].gather(1, ids[1:, None])[:, 0].tolist(), abs=1e-4)
    finish(s)


def test_a_pinned_prompt_keeps_its_state(hybrid: Parts) -> None:
    s = build(hybrid, states=8)
    text = "k x y z " * 6
    s.pin(text)
    episodes = s.generate([text + "k"] * 3, [PARAMS.with_seed(k) for k in range(3)])
    assert min(episode.prefix_tokens for episode in episodes) > 20
    assert_plain(hybrid[0], episodes)
    s.unpin(text)
    finish(s)
