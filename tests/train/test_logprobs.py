"""Trainer and sampler agree on every token's log-probability; the trainer never holds tokens x vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from asyncthink import Episode, ForkJoinSampler, SamplingParams, checkpoint_path
from asyncthink.engine.loaded import LoadedModel
from asyncthink.episode.options import Context, JoinMode
from asyncthink.model.decoder import Decoder
from asyncthink.protocol.prompts import PromptFormat
from asyncthink.tasks import Countdown
from asyncthink.train.logprobs import logits_of, token_logprobs, token_scores
from asyncthink.train.packed_attention import use_packed_attention
from asyncthink.train.packing import IGNORED, Row, pack
from asyncthink.train.rows import rows
from scripted import PROMPTS
from tiny_models import VOCABULARY, tiny
from tiny_models import taught as make_taught

TOLERANCE = 1e-4  # natural log, float32
LONG = PromptFormat("O" * 40 + ":{question}\n", "W:", "I" * 40 + "{subquery}:", "S" * 40 + ":{question}\n")


def assert_agreement(model: nn.Module, episodes: Sequence[Episode], temperature: float) -> None:
    batch = pack([rows(episode) for episode in episodes], 10**9)
    with torch.no_grad():
        scores = token_logprobs(model, batch, temperature)
    drawn = [
        logprob
        for episode in episodes
        for trace in episode.traces
        for logprob, own in zip(trace.logprobs, trace.sampled, strict=True)
        if own
    ]
    learned = batch.labels[0] != IGNORED
    torch.testing.assert_close(scores[learned], torch.tensor(drawn), atol=TOLERANCE, rtol=0)
    assert not scores[~learned].any()


@pytest.fixture(scope="module")
def served() -> LoadedModel:
    made = LoadedModel.load(checkpoint_path())
    use_packed_attention(made.decoder.model, moves=True)
    return made


@pytest.mark.parametrize("context", Context)
@pytest.mark.parametrize("join", JoinMode)
def test_the_shipped_model(served: LoadedModel, join: str, context: str) -> None:
    """At temperature 1; with agents cut off by their budget and without."""
    task = Countdown()
    sampler = served.sampler(join=join, context=context)
    params = [SamplingParams(max_tokens=budget, seed=budget) for budget in (300, 110, 110)]
    episodes = sampler.generate([task.prompt(task.sample(k)) for k in range(3)], params)
    assert {e.finish for e in episodes} >= {"answer"}
    joins = [join_ for episode in episodes for join_ in episode.traces[0].joins]
    assert joins
    assert all((join_.source is None) == (join == "exact") for join_ in joins)
    assert_agreement(served.decoder.model, episodes, 1.0)


FAMILIES = ["qwen3", "llama", "gemma2", "gemma3", "mistral", "cohere2", "phi3", "yarn_rope"]


@pytest.fixture(scope="module", params=FAMILIES)
def taught(request: pytest.FixtureRequest) -> tuple[Decoder, Any]:
    """A tiny model of a family that is inclined to organize."""
    model, tok = make_taught(request.param)
    decoder = Decoder(model, num_pages=2000)
    use_packed_attention(model, moves=True)
    return decoder, tok


@pytest.mark.parametrize("context", Context)
@pytest.mark.parametrize("join", JoinMode)
def test_families(taught: tuple[Decoder, Any], join: Any, context: str) -> None:
    """Windows, soft caps, scaled logits, partial and scaled rotations; a temperature; episodes that go wrong."""
    decoder, tok = taught
    sampler = ForkJoinSampler(decoder, tok, prompts=PROMPTS, context=context, join=join)
    params = SamplingParams(temperature=0.8, max_tokens=40)
    episodes = sampler.generate(["q"] * 12, [params.with_seed(k) for k in range(12)])
    sampler.prefixes.clear()
    assert sum(episode.joins for episode in episodes) > 2
    assert any(episode.format_errors for episode in episodes)
    assert_agreement(decoder.model, episodes, 0.8)


@pytest.mark.parametrize("mode", ["sequential", "parallel"])
def test_traces_without_workers(served: LoadedModel, mode: str) -> None:
    task = Countdown()
    sampler = served.sampler(mode=mode)
    episodes = sampler.generate([task.prompt(task.sample(3))], SamplingParams(max_tokens=120, seed=3))
    assert_agreement(served.decoder.model, episodes, 1.0)


@pytest.mark.parametrize(("mode", "context"), [("parallel", "shared"), ("asyncthink", "isolated")])
def test_prompts_in_common(taught: tuple[Decoder, Any], mode: str, context: str) -> None:
    """Rows whose prompts begin alike see them in the first one's row."""
    decoder, tok = taught
    sampler = ForkJoinSampler(decoder, tok, prompts=LONG, mode=mode, context=context)
    params = SamplingParams(max_tokens=30)
    episodes = sampler.generate(["q"] * 8, [params.with_seed(k) for k in range(8)])
    sampler.prefixes.clear()
    made = [row for episode in episodes for row in rows(episode)]
    assert any(row.parent is not None and row.fork_at >= 39 for row in made)
    assert_agreement(decoder.model, episodes, 1.0)


# -- the output layer -------------------------------------------------------------------------------------------------


def sample(count: int = 5, length: int = 9) -> list[list[Row]]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(3, VOCABULARY, (count, length), generator=generator).tolist()
    return [[Row("solo", "shared", tuple(row), (False,) * 3 + (True,) * (length - 3))] for row in tokens]


@pytest.mark.parametrize("family", ["qwen3", "gemma2", "cohere2", "granite"])
def test_chunks_change_nothing(family: str) -> None:
    """Scores and gradients, for outputs that are plain, soft-capped, multiplied and divided."""
    model = tiny(family, dtype=torch.float64, **({"logits_scaling": 3.0} if family == "granite" else {}))
    use_packed_attention(model)
    batch = pack(sample(), 100)
    plain = (logits_of(model, batch)[0] / 0.7).log_softmax(-1)
    expected = plain.gather(1, batch.labels[0].clamp(min=0)[:, None])[:, 0] * (batch.labels[0] != IGNORED)
    expected.square().sum().backward()
    gradient = {name: p.grad.clone() for name, p in model.named_parameters()}
    largest = 0

    def note(module: nn.Module, args: Any, output: torch.Tensor) -> None:
        nonlocal largest
        largest = max(largest, output.numel())

    chunk = 4 * VOCABULARY + 1
    for size in (chunk, 2**25):
        model.zero_grad()
        handle = model.get_output_embeddings().register_forward_hook(note)
        scores = token_logprobs(model, batch, 0.7, chunk=size)
        scores.square().sum().backward()
        handle.remove()
        assert largest <= size
        torch.testing.assert_close(scores, expected, atol=1e-9, rtol=1e-9)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.grad, gradient[name], atol=1e-7, rtol=1e-7)


def test_scores_are_float32_within_an_autocast() -> None:
    model = tiny("qwen3")
    use_packed_attention(model)
    batch = pack(sample(), 100)
    with torch.autocast("cpu", torch.bfloat16):
        got = token_logprobs(model, batch)
    expected = token_logprobs(model, batch)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected, atol=0.3, rtol=0)
    assert not torch.equal(got, expected)


def test_a_batch_without_labels_has_scores_of_zero() -> None:
    model = tiny("qwen3")
    use_packed_attention(model)
    batch = pack([[Row("solo", "shared", (5, 6, 7), (False,) * 3)]], 1)
    assert token_logprobs(model, batch).tolist() == [0.0] * 3


def test_an_output_that_is_not_understood_is_refused() -> None:
    model: Any = tiny("qwen3")
    use_packed_attention(model)
    forward = model.forward

    def twice(*args: Any, **options: Any) -> Any:
        output = forward(*args, **options)
        output.logits = 2 * output.logits
        return output

    model.forward = twice
    with pytest.raises(ValueError, match="logits of Qwen3ForCausalLM to be those of its output layer"):
        token_logprobs(model, pack(sample(), 100))


def test_the_output_layer_is_asked_once_without_dropout() -> None:
    model = tiny("phi3", embd_pdrop=0.5, resid_pdrop=0.5).train()
    use_packed_attention(model)
    batch = pack(sample(), 100)
    token_logprobs(model, batch)
    assert model.training
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    model.base_model.register_forward_hook(count)
    token_logprobs(model, batch)
    assert calls == 1


@pytest.mark.parametrize("chunk", [2**25, VOCABULARY * 3])
def test_entropy_is_that_of_the_distribution_that_tokens_are_drawn_from(chunk: int) -> None:
    model = tiny("qwen3")
    use_packed_attention(model)
    batch = pack([[Row("", "", tuple(range(5, 15)), (False, *(True,) * 9))]], 1)
    expected = torch.distributions.Categorical(logits=logits_of(model, batch)[0, :-1].double() / 0.7).entropy()
    for learn in (False, True):
        logprobs, entropy = token_scores(model, batch, 0.7, chunk, learn_entropy=learn)
        torch.testing.assert_close(logprobs, token_logprobs(model, batch, 0.7, chunk), rtol=0, atol=1e-5)
        torch.testing.assert_close(entropy[:-1].double(), expected, rtol=0, atol=1e-5)
        model.zero_grad()
        entropy.sum().backward() if learn else logprobs.sum().backward()
        assert all(parameter.grad is not None for parameter in model.parameters())
