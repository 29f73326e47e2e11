"""Rollouts: groups of episodes drawn with the current weights, graded, with their advantages."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, nan
from typing import Any

import torch
from torch import Tensor

from asyncthink.episode.params import SamplingParams
from asyncthink.episode.records import Episode
from asyncthink.episode.source import EpisodeSource
from asyncthink.tasks import Task
from asyncthink.tasks.rewards import Reward, RewardRule
from asyncthink.train.advantages import advantages


@dataclass(frozen=True, slots=True)
class Rollout:
    """One episode of a group with its reward and its advantage, which the organizer and its workers share.

    The update leaves out an episode that is not ``usable``: its reward or the log-probability of a drawn token is not
    finite, the model or the program failed on it, or fewer than two episodes of its group are usable.
    """

    episode: Episode
    reward: Reward
    advantage: float
    usable: bool = True


@dataclass(frozen=True, slots=True)
class Question:
    """One question of a step: a task, a puzzle of it, and the seed of its group."""

    task: Task
    puzzle: Any
    seed: int


def draw_questions(tasks: Sequence[Task], seed: int, step: int, count: int) -> list[Question]:
    """The questions of one step: a pure function of its arguments, never a held-out puzzle."""
    rng = random.Random(f"rollout {seed} {step}")
    drawn = []
    for _ in range(count):
        task = rng.choice(tasks)
        drawn.append(Question(task, task.sample(rng.getrandbits(62)), rng.getrandbits(62)))
    return drawn


def roll_out(
    sampler: EpisodeSource,
    questions: Sequence[Question],
    group_size: int,
    params: SamplingParams,
    rule: RewardRule,
    normalise: bool = True,
) -> list[list[Rollout]]:
    """``group_size`` episodes of each question, all decoded in one batch; one list per question.

    Episode g of a question draws with seed ``question.seed + g``.
    """
    prompts = [question.task.prompt(question.puzzle) for question in questions for _ in range(group_size)]
    seeds = [(question.seed + number) % 2**64 for question in questions for number in range(group_size)]
    episodes = sampler.generate(prompts, [params.with_seed(seed) for seed in seeds])
    groups = []
    for number, question in enumerate(questions):
        group = episodes[number * group_size : (number + 1) * group_size]
        rewards = [rule(question.task, question.puzzle, episode) for episode in group]
        groups.append(with_advantages(group, rewards, normalise))
    return groups


def with_advantages(episodes: Sequence[Episode], rewards: Sequence[Reward], normalise: bool = True) -> list[Rollout]:
    """One group with its :func:`.advantages.advantages`, relative to its usable episodes (:class:`Rollout`)."""
    totals = [
        reward.total if finite_logprobs(episode) and not episode.failures else nan
        for episode, reward in zip(episodes, rewards, strict=True)
    ]
    enough = sum(map(isfinite, totals)) >= 2
    return [
        Rollout(episode, reward, advantage, enough and isfinite(total))
        for episode, reward, advantage, total in zip(
            episodes, rewards, advantages(totals, normalise), totals, strict=True
        )
    ]


def finite_logprobs(episode: Episode) -> bool:
    """Whether every token that an agent drew has a finite log-probability."""
    return all(
        isfinite(logprob)
        for trace in episode.traces
        for logprob, drawn in zip(trace.logprobs, trace.sampled, strict=True)
        if drawn
    )


def split_into_batches(rollouts: Sequence[Rollout], kept: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """The numbers ``kept`` of episodes, in batches of at most ``batch_tokens`` tokens; a longer episode is alone."""
    batches: list[list[int]] = []
    size = batch_tokens
    for number in kept:
        tokens = sum(len(trace.tokens) for trace in rollouts[number].episode.traces)
        if size + tokens > batch_tokens:
            batches.append([])
            size = 0
        batches[-1].append(number)
        size += tokens
    return batches


def drawn_tokens(
    rollouts: Sequence[Rollout], weights: Sequence[float], device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """(old_logprobs, advantages, weights), each [N] float32, of all drawn tokens in packed order."""
    columns: tuple[list[float], list[float], list[float]] = ([], [], [])
    for rollout, weight in zip(rollouts, weights, strict=True):
        for trace in rollout.episode.traces:
            logprobs = [logprob for logprob, drawn in zip(trace.logprobs, trace.sampled, strict=True) if drawn]
            columns[0].extend(logprobs)
            columns[1].extend([rollout.advantage] * len(logprobs))
            columns[2].extend([weight] * len(logprobs))
    old_logprobs, token_advantages, token_weights = (
        torch.tensor(column, dtype=torch.float32, device=device) for column in columns
    )
    return old_logprobs, token_advantages, token_weights
