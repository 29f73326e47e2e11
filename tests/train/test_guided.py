"""Training under a guide: sampler and trainer normalise over the same tokens, and inserted ones carry no loss."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from asyncthink import ForkJoinSampler, SamplingParams
from asyncthink.engine.masks import RuleMasks
from asyncthink.episode.records import Episode
from asyncthink.train.guided import drawn_masks
from asyncthink.train.logprobs import token_logprobs
from asyncthink.train.packed_attention import use_packed_attention
from asyncthink.train.packing import IGNORED, pack
from asyncthink.train.rows import rows
from scripted import PROMPTS
from tiny_models import organizer


def sampled(guide: str, temperature: float, **options: Any) -> tuple[nn.Module, list[Episode], RuleMasks]:
    """A tiny model that organizes now and then, and episodes of it under a guide."""
    model, tok = organizer()
    sampler = ForkJoinSampler(model, tok, prompts=PROMPTS, guide=guide, num_pages=512, **options)
    params = [SamplingParams(temperature=temperature, seed=seed, max_tokens=40) for seed in range(6)]
    episodes = sampler.generate(["12"] * 6, params)
    return model, episodes, sampler.engine.guided.masks(len(tok))


@pytest.mark.parametrize("options", [{}, {"join": "append"}, {"context": "isolated"}, {"mode": "parallel"}], ids=str)
@pytest.mark.parametrize("guide", ["legal", "plan"])
def test_sampler_and_trainer_agree_on_every_token(guide: str, options: dict[str, Any]) -> None:
    model, episodes, masks = sampled(guide, 0.8, **options)
    episodes = [Episode.from_dict(episode.to_dict()) for episode in episodes]  # a record is all that a trainer needs
    use_packed_attention(model, moves=options.get("join") == "append")
    batch = pack([rows(episode) for episode in episodes], 2**62)
    learned = batch.labels[0] != IGNORED
    drawn = torch.tensor(
        [lp for e in episodes for t in e.traces for lp, own in zip(t.logprobs, t.sampled, strict=True) if own]
    )
    allowed = drawn_masks(episodes, masks)
    assert allowed is not None
    with torch.no_grad():
        for chunk in (2**25, 7 * masks.vocabulary):
            got = token_logprobs(model, batch, 0.8, chunk, allowed)[learned]
            torch.testing.assert_close(got, drawn, atol=1e-4, rtol=1e-4)
        free = token_logprobs(model, batch, 0.8)[learned]
    assert (free - drawn).abs().max() > 5e-3  # the masks are what makes them agree
    assert any(trace.forced for episode in episodes for trace in episode.traces)


def test_forced_tokens_have_no_gradient() -> None:
    model, episodes, masks = sampled("plan", 1.0)
    use_packed_attention(model)
    batch = pack([rows(episode) for episode in episodes], 2**62)
    forced = sum(len(trace.forced) for episode in episodes for trace in episode.traces)
    assert forced
    assert int((batch.labels != IGNORED).sum()) == sum(episode.total_tokens for episode in episodes)
    logprobs = token_logprobs(model, batch, masks=drawn_masks(episodes, masks))
    logprobs.sum().backward()  # type: ignore[no-untyped-call]
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_episodes_without_a_guide_have_no_masks() -> None:
    _, episodes, masks = sampled("off", 1.0)
    assert drawn_masks(episodes, masks) is None


def test_masks_of_another_batch_are_refused() -> None:
    model, episodes, masks = sampled("legal", 1.0)
    use_packed_attention(model)
    batch = pack([rows(episodes[0])], 2**62)
    with pytest.raises(ValueError, match=r"masks: expected those of .* labelled tokens, got"):
        token_logprobs(model, batch, masks=drawn_masks(episodes, masks))
