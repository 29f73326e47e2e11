"""Samples of TRL: an episode's agents as rows of tokens, from which the model computes what the sampler drew with."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
import torch
from rollouts import answered, rollouts, sampler

import tiny_models as tm
from asyncthink.integrations.trl.samples import Sample, sample_metrics, samples
from asyncthink.tasks.rewards import Reward
from asyncthink.train.rollout import Rollout


@pytest.mark.parametrize(
    "options",
    [{}, {"context": "isolated"}, {"depth": 2, "pool": 6}, {"mode": "parallel", "pool": 2}],
    ids=["shared", "isolated", "nested", "parallel"],
)
def test_the_model_gives_the_rows_of_samples_the_probabilities_that_were_drawn_with(options: dict[str, object]) -> None:
    drawer = sampler(**options)
    (group,) = rollouts(drawer, temperature=0.8)
    assert max(len(rollout.episode.traces) for rollout in group) > 1
    for rollout in group:
        made = samples(rollout, group_id=7, model_version=3)
        assert sum(int(sample.completion_mask.sum()) for sample in made) == rollout.episode.total_tokens
        for sample in made:
            ids = torch.from_numpy(sample.input_ids)
            logprobs = torch.log_softmax(tm.eager(drawer.decoder.model, ids) / 0.8, dim=-1)
            scored = logprobs[:-1].gather(1, ids[1:, None])[:, 0].numpy()
            drawn = sample.completion_mask == 1
            np.testing.assert_allclose(scored[drawn[1:]], sample.old_log_probs[drawn], atol=1e-4, rtol=0)
            assert (sample.old_log_probs[~drawn] == 0).all() and not drawn[0]
            assert (sample.group_id, sample.model_version) == (7, 3)
            assert {sample.advantage} == set(rollout.advantages)


def test_metrics_are_told_once_an_episode_and_trl_takes_their_means() -> None:
    (group,) = rollouts(sampler())
    for rollout in group:
        told = [sample.metrics for sample in samples(rollout, 0, 0)]
        assert [metrics for metrics in told if metrics] == [sample_metrics(rollout)]
    names = sample_metrics(group[0])
    assert {"reward", "episode/accuracy", "episode/eta", "episode/tokens", "episode/format_errors"} <= names.keys()
    assert names["episode/tokens"] == group[0].episode.total_tokens
    words = {word for name in names for word in re.split("[/_]", name)}
    assert not words & {"total", "max", "min"}, "TRL reads these as sums and extrema"


def test_what_no_sample_can_hold_is_refused() -> None:
    reward = Reward(1.0, 0.25, 0.1, False, 1.1)
    with pytest.raises(ValueError, match="expected one that an update may use"):
        samples(Rollout(answered("1"), reward, (0.0,), usable=False), 0, 0)
    moved = dataclasses.replace(answered("1"), join_mode="append")
    with pytest.raises(ValueError, match="join: expected 'exact'"):
        samples(Rollout(moved, reward, (0.0, 0.0)), 0, 0)


def test_the_fields_are_those_that_trl_reads() -> None:
    module = pytest.importorskip("trl.experimental.async_grpo.async_rollout_worker", exc_type=ImportError)
    theirs = [(each.name, each.default) for each in dataclasses.fields(module.RolloutSample)]
    assert [(each.name, each.default) for each in dataclasses.fields(Sample)] == theirs
