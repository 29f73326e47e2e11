"""How far `append` and `link` joins are from `exact` ones, for the checkpoint in the box.

Episodes are decoded with each join mode; then every token that the organizer drew behind its first join is scored again
in the context that `exact` would have given it: all of its text prefilled. The table says by how much log-probabilities
differ, how often the most likely token changes, and what the same puzzles score.
"""

from __future__ import annotations

from statistics import fmean

import pytest
import torch

from asyncthink import Episode, ForkJoinSampler, SamplingParams, checkpoint_path
from asyncthink.engine.loaded import LoadedModel
from asyncthink.tasks import Countdown

PARAMS = SamplingParams(temperature=0.0, max_tokens=700)
FIRST = 30_000


@pytest.fixture(scope="module")
def served() -> LoadedModel:
    return LoadedModel.load(checkpoint_path())


@pytest.mark.parametrize("context", ["shared", "isolated"])
@pytest.mark.quick(join=["append"], context=["shared"])
@pytest.mark.parametrize("join", ["exact", "append", "link"])
def test_difference_from_exact(benchmark, table, served, join, context):
    task = Countdown()
    puzzles = [task.sample(FIRST + k, held_out=True) for k in range(200 if benchmark.enabled else 4)]
    sampler = served.sampler(join=join, context=context)
    episodes: list[Episode] = benchmark.pedantic(
        lambda: sampler.generate([task.prompt(p) for p in puzzles], PARAMS), rounds=1
    )
    changes, flips = [], []
    for episode in episodes:
        if episode.joins:
            changed, flipped = rescore(sampler, episode)
            changes += changed
            flips += flipped
    assert changes
    if join == "exact":
        assert max(changes) < 1e-3
    solved = [len(task.correct(p, e.answer or "")) == task.asked for p, e in zip(puzzles, episodes, strict=True)]
    table.add(
        {
            "join": join,
            "context": context,
            "tokens": len(changes),
            "mean |d logprob|": fmean(changes),
            "largest": max(changes),
            "most likely token changes %": 100 * fmean(flips),
            "all four right %": 100 * fmean(solved),
        }
    )


def rescore(sampler: ForkJoinSampler, episode: Episode) -> tuple[list[float], list[bool]]:
    """For the organizer's drawn tokens behind its first join: |log-probability - exact one|, and argmax changes."""
    trace = episode.traces[0]
    first = trace.joins[0].at
    places = [k for k in range(first, len(trace.tokens)) if trace.sampled[k]]
    cache = sampler.cache
    branch = cache.root()
    try:
        plan = cache.plan([(branch, len(trace.tokens))])
        logits = sampler.decoder.forward(torch.tensor(trace.tokens), plan, [k - 1 for k in places])
    finally:
        cache.release(branch)
    logp = torch.log_softmax(logits.double(), -1)
    drawn = torch.tensor([trace.tokens[k] for k in places])
    exact = logp.gather(1, drawn[:, None])[:, 0].tolist()
    changes = [abs(trace.logprobs[k] - value) for k, value in zip(places, exact, strict=True)]
    return changes, (logp.argmax(-1) != drawn).tolist()
