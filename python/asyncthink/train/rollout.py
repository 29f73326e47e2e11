"""Rollouts: groups of episodes by the fork-join sampler from the live weights, graded, with their advantages."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, nan
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from asyncthink.engine.sampler import ForkJoinSampler, SamplingParams
from asyncthink.episode.records import Episode
from asyncthink.tasks import Task
from asyncthink.tasks.rewards import Reward, RewardRule, advantages


@dataclass(frozen=True, slots=True)
class Rollout:
    """One episode of a group, its reward and its group-relative advantage: one for the organizer and its workers.

    Not ``usable``: the episode is left out of the update. Its reward or a log-probability it was drawn with is not
    finite, the model or the program failed on it, or fewer than two of its group are left.
    """

    episode: Episode
    reward: Reward
    advantage: float
    usable: bool = True


@dataclass(frozen=True, slots=True)
class Question:
    """One prompt of a step: a task, a puzzle of it, and the seed of its group."""

    task: Task
    puzzle: Any
    seed: int


def questions(tasks: Sequence[Task], seed: int, step: int, count: int) -> list[Question]:
    """The questions of one step: a pure function of its arguments, never a held-out puzzle."""
    rng = random.Random(f"rollout {seed} {step}")
    found = []
    for _ in range(count):
        task = rng.choice(tasks)
        found.append(Question(task, task.sample(rng.getrandbits(62)), rng.getrandbits(62)))
    return found


def roll_out(
    sampler: ForkJoinSampler,
    asked: Sequence[Question],
    group: int,
    params: SamplingParams,
    rule: RewardRule,
    normalise: bool = True,
) -> list[list[Rollout]]:
    """``group`` episodes of each question, all decoded together; one list per question.

    Advantages are those of whole episodes within their group (:func:`asyncthink.tasks.rewards.advantages`), taken
    before any episode is cut into rows; they are relative to the usable ones (:class:`Rollout`). Episode g of a
    question draws with seed ``question.seed + g``.
    """
    prompts = [question.task.prompt(question.puzzle) for question in asked for _ in range(group)]
    seeds = [(question.seed + number) % 2**64 for question in asked for number in range(group)]
    episodes = sampler.generate(prompts, [params.with_seed(seed) for seed in seeds])
    made = []
    for number, question in enumerate(asked):
        drawn = episodes[number * group : (number + 1) * group]
        rewards = [rule(question.task, question.puzzle, episode) for episode in drawn]
        made.append(graded(drawn, rewards, normalise))
    return made


def graded(episodes: Sequence[Episode], rewards: Sequence[Reward], normalise: bool = True) -> list[Rollout]:
    """One group with its advantages, and which of its episodes are usable (:class:`Rollout`)."""
    known = [
        reward.total if finite_logprobs(episode) and not episode.failures else nan
        for episode, reward in zip(episodes, rewards, strict=True)
    ]
    each = advantages(known, normalise)
    enough = sum(map(isfinite, known)) >= 2
    return [
        Rollout(episode, reward, advantage, enough and isfinite(total))
        for episode, reward, advantage, total in zip(episodes, rewards, each, known, strict=True)
    ]


def finite_logprobs(episode: Episode) -> bool:
    """Whether every token that an agent drew has a finite log-probability."""
    return all(
        isfinite(logp)
        for trace in episode.traces
        for logp, own in zip(trace.logprobs, trace.sampled, strict=True)
        if own
    )


def measures(rollout: Rollout) -> dict[str, float]:
    """The figures of one episode, each term of the reward apart."""
    episode, reward = rollout.episode, rollout.reward
    return {
        "reward": reward.total,
        "accuracy": reward.accuracy,
        "solved": reward.accuracy >= 1,
        "eta": reward.eta,
        "concurrency_reward": reward.concurrency,
        "format_errors": reward.broken,
        "critical_path_tokens": episode.critical_path_tokens,
        "total_tokens": episode.total_tokens,
        "forks": episode.forks,
        "rewards_not_finite": not isfinite(reward.total),
        "logprobs_not_finite": not finite_logprobs(episode),
        "left_out": not rollout.usable,
    }


COUNTS = ("rewards_not_finite", "logprobs_not_finite", "left_out")


def figures(episodes: Sequence[dict[str, float]]) -> dict[str, float]:
    """The log of a step from the :func:`measures` of all its episodes.

    Means over episodes (:func:`finite_mean`), the sums of :data:`COUNTS`, and the number of ``episodes``.
    """
    made: dict[str, float] = {"episodes": len(episodes)}
    for name in episodes[0]:
        values = [episode[name] for episode in episodes]
        made[name] = sum(values) if name in COUNTS else finite_mean(values)
    return made


def finite_mean(values: Sequence[float]) -> float:
    """The mean of the finite values; NaN where none is.

    >>> finite_mean([1.0, float("inf"), 2.0])
    1.5
    """
    finite = [value for value in values if isfinite(value)]
    return fmean(finite) if finite else nan


def packs(rollouts: Sequence[Rollout], kept: Sequence[int], length: int) -> list[list[int]]:
    """Numbers of the kept episodes in packs of about ``length`` tokens."""
    made: list[list[int]] = []
    size = length
    for k in kept:
        tokens = sum(len(trace.tokens) for trace in rollouts[k].episode.traces)
        if size + tokens > length:
            made.append([])
            size = 0
        made[-1].append(k)
        size += tokens
    return made


def drawn(rollouts: Sequence[Rollout], weights: Sequence[float], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """(what the sampler drew with, advantage, weight), [N] float32 each, of all drawn tokens in packed order."""
    old: list[float] = []
    advantage: list[float] = []
    weight: list[float] = []
    for rollout, w in zip(rollouts, weights, strict=True):
        for trace in rollout.episode.traces:
            own_logps = [logp for logp, own in zip(trace.logprobs, trace.sampled, strict=True) if own]
            old += own_logps
            advantage += [rollout.advantage] * len(own_logps)
            weight += [w] * len(own_logps)
    made = (torch.tensor(values, dtype=torch.float32, device=device) for values in (old, advantage, weight))
    return next(made), next(made), next(made)
