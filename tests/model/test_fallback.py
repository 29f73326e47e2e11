"""Models on caches of their own: the logits, episodes, threads and refusals of the fallback decoder."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from asyncthink import ForkJoinSampler, SamplingParams
from asyncthink.engine.loaded import LoadedModel
from asyncthink.engine.scoring import score
from asyncthink.episode.records import Episode
from asyncthink.model.choice import decoder_for
from asyncthink.model.decoder import Decoder, DecoderError
from asyncthink.model.fallback import FallbackDecoder
from asyncthink_kernels.cache import OutOfPages
from scripted import PROMPTS
from tiny_fallbacks import taught_own, tiny_own
from tiny_models import feed, tiny, tokens

WARNED = "runs on the fallback decoder: a fork copies"


def alone(model: nn.Module, context: Any) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=torch.as_tensor(context)[None]).logits[0].float()
        return logits


@pytest.fixture(scope="module")
def falcon() -> tuple[nn.Module, Any]:
    return taught_own("falcon")


@pytest.fixture(scope="module")
def sampler(falcon: tuple[nn.Module, Any]) -> ForkJoinSampler:
    with pytest.warns(RuntimeWarning, match=WARNED) as caught:
        made = ForkJoinSampler(*falcon, prompts=PROMPTS, num_pages=400)
    assert len(caught) == 1
    assert "falcon ignores the attention implementation" in str(caught[0].message)
    return made


def check_logprobs(model: nn.Module, episode: Episode) -> int:
    """Each drawn token's log-probability is the model's own; returns how many there were."""
    count = 0
    for trace in episode.traces:
        before = episode.traces[trace.parent].tokens[: trace.fork_at] if trace.parent is not None else []
        context = before + trace.tokens
        own = torch.log_softmax(alone(model, context).double(), -1)
        for k, drawn in enumerate(trace.sampled):
            if drawn:
                expected = float(own[len(before) + k - 1, trace.tokens[k]])
                assert trace.logprobs[k] == pytest.approx(expected, abs=1e-4)
                count += 1
    return count


@pytest.mark.parametrize("kind", ["falcon", "bloom", "mpt", "rwkv"])
def test_forks_siblings_cuts_and_joins_have_the_models_own_logits(kind: str) -> None:
    model = tiny_own(kind)
    decoder = FallbackDecoder(model, num_pages=20_000, page_size=4)
    trunk, left, right = tokens(13, 0), tokens(5, 1), tokens(7, 2)
    cache = decoder.cache
    root = cache.root()
    feed(decoder, (root, trunk))
    child, early = cache.fork(root), cache.fork(root, 9)
    got = feed(decoder, (root, left), (child, right), (early, right[:3]))
    for part, context in zip(got, ((trunk, left), (trunk, right), (trunk[:9], right[:3])), strict=True):
        torch.testing.assert_close(part, alone(model, torch.cat(context))[-len(part) :], rtol=1e-4, atol=1e-4)
    cache.truncate(child, 15)
    (joined,) = feed(decoder, (child, left))
    expected = alone(model, torch.cat([trunk, right[:2], left]))[-len(left) :]
    torch.testing.assert_close(joined, expected, rtol=1e-4, atol=1e-4)
    for branch in (root, child, early):
        cache.release(branch)
    assert cache.used_pages == 0


def test_only_the_wanted_rows_in_their_order(falcon: tuple[nn.Module, Any]) -> None:
    decoder = FallbackDecoder(falcon[0], num_pages=64)
    a, b = decoder.cache.root(), decoder.cache.root()
    context = tokens(9, 3)
    plan = decoder.cache.plan([(a, 4), (b, 5)])
    got = decoder.forward(context, plan, [8, 1, 5])
    expected = torch.stack([alone(falcon[0], context[4:])[4], alone(falcon[0], context[:4])[1],
                            alone(falcon[0], context[4:])[1]])  # fmt: skip
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert decoder.forward(context[:1], decoder.cache.plan([(a, 1)]), []).shape == (0, expected.shape[1])


def test_episodes_have_the_models_own_logprobs_and_count_their_copies(sampler: ForkJoinSampler) -> None:
    episodes = sampler.generate(["q"] * 16, [SamplingParams(max_tokens=60, seed=k) for k in range(16)])
    assert sum(check_logprobs(sampler.decoder.model, episode) for episode in episodes) > 100
    joined = [episode for episode in episodes if episode.joins]
    assert joined
    for episode in joined:
        assert episode.kv_bytes_shared == 0
        assert episode.kv_bytes_copied >= episode.forks * sampler.decoder.storage.bytes_per_token
    stats = sampler.stats
    assert stats.kv_bytes_copied >= sum(episode.kv_bytes_copied for episode in episodes)
    assert stats.passes >= stats.steps
    sampler.cache.check()


def test_greedy_episodes_are_transformers_own_decoding(sampler: ForkJoinSampler) -> None:
    (episode,) = sampler.generate(["a question"], SamplingParams(max_tokens=40, temperature=0.0))
    for trace in episode.traces:
        before = episode.traces[trace.parent].tokens[: trace.fork_at] if trace.parent is not None else []
        own = alone(sampler.decoder.model, before + trace.tokens)
        drawn = [k for k, by_model in enumerate(trace.sampled) if by_model]
        assert [trace.tokens[k] for k in drawn] == [int(own[len(before) + k - 1].argmax()) for k in drawn]


def test_a_prompt_begins_with_what_is_cached(sampler: ForkJoinSampler) -> None:
    question = "a rather long question that comes twice"
    first, second = (sampler.generate([question], SamplingParams(max_tokens=8, seed=3))[0] for _ in range(2))
    assert [t.tokens for t in first.traces] == [t.tokens for t in second.traces]
    assert second.traces[0].tokens[: second.prefix_tokens] == first.traces[0].tokens[: second.prefix_tokens]
    assert second.prefix_tokens > len(question)


def test_threads_scores_and_guides(sampler: ForkJoinSampler, falcon: tuple[nn.Module, Any]) -> None:
    model = sampler.decoder.model
    with sampler.thread("once upon a time") as thread:
        (child,) = thread.fork()
        sampler.think([thread, child], [SamplingParams(max_tokens=6, seed=k) for k in range(2)])
        thread.write(" and")
        thread.think(SamplingParams(max_tokens=4, seed=2))
        context = list(thread.tokens)
        logprobs = score(sampler, context).logprobs
        own = torch.log_softmax(alone(model, context), -1)
        expected = [float(own[k, token]) for k, token in enumerate(context[1:])]
        assert logprobs == pytest.approx(expected, abs=1e-4)
        child.close()
    guided = ForkJoinSampler(sampler.decoder, falcon[1], prompts=PROMPTS, guide="legal", depth=2)
    episodes = guided.generate(["q"] * 4, [SamplingParams(max_tokens=50, seed=k) for k in range(4)])
    assert not any(episode.format_errors for episode in episodes)


def test_without_room_episodes_wait_and_end_as_they_would_have(falcon: tuple[nn.Module, Any]) -> None:
    params = [SamplingParams(max_tokens=40, seed=k) for k in range(16)]
    tight = ForkJoinSampler(*falcon, prompts=PROMPTS, num_pages=20, page_size=4, fallback=True)
    ample = ForkJoinSampler(*falcon, prompts=PROMPTS, num_pages=4000, page_size=4, fallback=True)
    got, expected = (s.generate(["q"] * 16, params) for s in (tight, ample))
    assert tight.stats.preemptions
    finished = [pair for pair in zip(got, expected, strict=True) if pair[0].finish != "out_of_pages"]
    assert len(finished) >= 8
    for one, other in finished:
        assert [t.tokens for t in one.traces] == [t.tokens for t in other.traces]
    tight.prefixes.clear()
    assert tight.cache.used_pages == 0


def test_a_step_that_fails_leaves_nothing_broken(
    falcon: tuple[nn.Module, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = FallbackDecoder(falcon[0], num_pages=64)
    root = decoder.cache.root()
    context = tokens(6, 5)
    feed(decoder, (root, context))
    child = decoder.cache.fork(root)
    plan = decoder.cache.plan([(root, 2), (child, 2)])
    with monkeypatch.context() as patch:
        patch.setattr(falcon[0].transformer.h[1], "forward", lambda *a, **k: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            decoder.forward(tokens(4, 6), plan, [0])
    decoder.cache.check()
    assert (root.length, child.length) == (6, 6)
    with pytest.raises(ValueError, match="expected one that was not run or undone"):
        decoder.forward(tokens(4, 6), plan, [0])
    new = tokens(2, 7)
    for logits in feed(decoder, (root, new), (child, new)):
        torch.testing.assert_close(logits, alone(falcon[0], torch.cat([context, new]))[-2:], rtol=1e-4, atol=1e-4)


def test_what_does_not_fit_is_said_before_anything_is_computed(falcon: tuple[nn.Module, Any]) -> None:
    decoder = FallbackDecoder(falcon[0], num_pages=4, page_size=2)
    cache = decoder.cache
    with pytest.raises(OutOfPages):
        cache.plan([(cache.root(), 9)])
    root = cache.root()
    plan = cache.plan([(root, 2)])
    for wrong, rows in ((tokens(3, 0), [0]), (tokens(2, 0).int(), [0]), (tokens(2, 0), [2]), (tokens(2, 0) - 99, [0])):
        with pytest.raises(ValueError, match="must be"):
            decoder.forward(wrong, plan, rows)
    decoder.forward(tokens(2, 0), plan, [0])
    with pytest.raises(DecoderError, match="can only join exactly"):
        decoder.join(root, root, 0, 1, "append")
    with pytest.raises(ValueError, match="a whole cache of its own"):
        decoder.copy(root, root, 0, 1)
    short = FallbackDecoder(tiny_own("gptj", n_positions=40), num_pages=99)
    assert short.max_length == 40
    with pytest.raises(ValueError, match="takes 40 positions"):
        feed(short, (short.cache.root(), tokens(41, 0)))


def test_the_caller_chooses(falcon: tuple[nn.Module, Any]) -> None:
    with pytest.raises(DecoderError, match=r"falcon ignores.*attention"):
        decoder_for(falcon[0], fallback=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        asked = decoder_for(falcon[0], fallback=True, num_pages=64)
        served = decoder_for(tiny("llama"), num_pages=64)
        own = decoder_for(tiny("llama"), num_pages=64, fallback=True)
    assert isinstance(served, Decoder)
    assert isinstance(own, FallbackDecoder)
    assert asked.explain()["decoder"].startswith("fallback: it was asked for; a fork copies its context's cache (")
    with pytest.raises(DecoderError, match="compile: expected none on the fallback decoder"):
        decoder_for(falcon[0], fallback=True, compile=True)
    with pytest.raises(DecoderError, match=r"ignores the attention.*and the fallback decoder cannot serve it: weights"):
        decoder_for(falcon[0], weights="int8")
    with pytest.raises(ValueError, match="fallback: expected True, False or None"):
        decoder_for(falcon[0], fallback="yes")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="join: this model offers exact, got 'append': falcon can only join exactly"):
        ForkJoinSampler(*falcon, prompts=PROMPTS, join="append", fallback=True)


def test_a_folder_runs_from_its_path(falcon: tuple[nn.Module, Any], tmp_path: Path) -> None:
    for part in falcon:
        part.save_pretrained(tmp_path)
    with pytest.warns(RuntimeWarning, match=WARNED):
        loaded = LoadedModel.load(tmp_path, prompts=PROMPTS, num_pages=400, device="cpu", dtype="float32")
    (episode,) = loaded.sampler(mode="sequential").generate(["q"], SamplingParams(max_tokens=20, seed=2))
    assert check_logprobs(falcon[0], episode)
    assert loaded.decoder.explain()["device"].startswith("cpu")
    with pytest.raises(DecoderError, match="falcon ignores"):
        ForkJoinSampler(tmp_path, prompts=PROMPTS, fallback=False)
    with pytest.raises(ValueError, match="model: expected a path, a live module or a decoder, got int"):
        ForkJoinSampler(7, prompts=PROMPTS)  # type: ignore[arg-type]


def test_models_that_no_cache_serves_are_refused_with_both_reasons() -> None:
    looks_ahead = tiny_own("xlm")
    with pytest.raises(DecoderError, match=r"cannot serve it: xlm is not a decoder: logits of a token depend on"):
        decoder_for(looks_ahead)


def test_new_weights_and_moved_ones(falcon: tuple[nn.Module, Any]) -> None:
    model, _ = taught_own("falcon")
    decoder = FallbackDecoder(model, num_pages=64, pack=True)
    before = decoder.weights_version()
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    assert decoder.weights_version() != before
    decoder.refresh()
    (logits,) = feed(decoder, (decoder.cache.root(), tokens(5, 1)))
    torch.testing.assert_close(logits, alone(model, tokens(5, 1)), rtol=1e-3, atol=1e-3)
    model.double()
    with pytest.raises(DecoderError, match="this decoder was made for"):
        decoder.refresh()
