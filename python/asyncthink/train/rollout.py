"""Rollouts: groups of episodes drawn with the current weights, graded, with their advantages."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, nan
from typing import Any, Literal

import torch
from torch import Tensor

from asyncthink.episode.params import SamplingParams
from asyncthink.episode.records import Episode
from asyncthink.episode.source import EpisodeSource
from asyncthink.tasks import Task
from asyncthink.tasks.rewards import Reward, RewardFunction, evaluate, marginal
from asyncthink.train.advantages import Scale, advantages

Credit = Literal["episode", "marginal"]
CREDITS = ("episode", "marginal")


@dataclass(frozen=True, slots=True)
class Rollout:
    """One episode of a group with its reward, and the advantage of each of its traces.

    An organizer and its workers have one advantage in common. The update leaves out an episode that is not ``usable``:
    its reward or the log-probability of a drawn token is not finite, the model or the program failed on it, or fewer
    than two episodes of its group are usable.
    """

    episode: Episode
    reward: Reward
    advantages: tuple[float, ...]
    usable: bool = True


def differs(group: Sequence[Rollout]) -> bool:
    """Whether there is anything to learn from a group: an advantage that is not 0."""
    return any(rollout.usable and any(rollout.advantages) for rollout in group)


@dataclass(frozen=True, slots=True)
class Question:
    """One question of a step: a task, a puzzle of it, and the seed of its group."""

    task: Task
    puzzle: Any
    seed: int


def draw_questions(tasks: Sequence[Task], seed: int, step: int, count: int, more: int = 0) -> list[Question]:
    """The questions of one step: a pure function of its arguments, never a held-out puzzle.

    ``more`` counts the times that the step draws again.
    """
    rng = random.Random(f"rollout {seed} {step}" + (f" {more}" if more else ""))
    drawn = []
    for _ in range(count):
        task = rng.choice(tasks)
        drawn.append(Question(task, task.sample(rng.getrandbits(62)), rng.getrandbits(62)))
    return drawn


@dataclass(frozen=True, slots=True)
class Grading:
    """How episodes become advantages.

    Args:
        rule: the reward (:mod:`asyncthink.tasks.rewards`).
        scale: what advantages are divided by (:mod:`.advantages`).
        credit: "episode": all traces of an episode share one advantage. "marginal", for parallel traces: each has its
            own, of what it adds (:func:`asyncthink.tasks.rewards.marginal`) relative to all traces of the group.
    """

    rule: RewardFunction
    scale: Scale = "none"
    credit: Credit = "episode"


def roll_out(
    sampler: EpisodeSource,
    questions: Sequence[Question],
    group_size: int,
    params: SamplingParams,
    grading: Grading,
) -> list[list[Rollout]]:
    """``group_size`` episodes of each question, all decoded in one batch; one list per question.

    Episode g of a question draws with seed ``question.seed + g``.
    """
    prompts = [question.task.prompt(question.puzzle) for question in questions for _ in range(group_size)]
    seeds = [(question.seed + number) % 2**64 for question in questions for number in range(group_size)]
    episodes = sampler.generate(prompts, [params.with_seed(seed) for seed in seeds]) if prompts else []
    groups = [episodes[start : start + group_size] for start in range(0, len(episodes), group_size)]
    return [graded(question, group, grading) for question, group in zip(questions, groups, strict=True)]


def graded(question: Question, episodes: Sequence[Episode], grading: Grading) -> list[Rollout]:
    """The rollouts of one group."""
    rewards = [evaluate(grading.rule, question.task, question.puzzle, episode) for episode in episodes]
    if grading.credit == "episode":
        return with_advantages(episodes, rewards, [[reward.total] for reward in rewards], grading.scale)
    added = [marginal(grading.rule, question.task, question.puzzle, episode) for episode in episodes]
    return with_advantages(episodes, rewards, added, grading.scale)


def with_advantages(
    episodes: Sequence[Episode],
    rewards: Sequence[Reward],
    values: Sequence[Sequence[float]],
    scale: Scale = "none",
) -> list[Rollout]:
    """One group with its :func:`.advantages.advantages`, relative to its usable episodes (:class:`Rollout`).

    ``values`` are those of each episode's traces, or a single one for all of them.
    """
    usable = [
        isfinite(reward.total) and finite_logprobs(episode) and not episode.failures
        for episode, reward in zip(episodes, rewards, strict=True)
    ]
    group = [value if kept else nan for kept, own in zip(usable, values, strict=True) for value in own]
    relative = iter(advantages(group, scale))
    shares = [tuple(next(relative) for _ in own) for own in values]
    enough = sum(usable) >= 2
    return [
        Rollout(
            episode,
            reward,
            share if len(share) == len(episode.traces) else share * len(episode.traces),
            enough and kept,
        )
        for episode, reward, share, kept in zip(episodes, rewards, shares, usable, strict=True)
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
        for trace, advantage in zip(rollout.episode.traces, rollout.advantages, strict=True):
            logprobs = [logprob for logprob, drawn in zip(trace.logprobs, trace.sampled, strict=True) if drawn]
            columns[0].extend(logprobs)
            columns[1].extend([advantage] * len(logprobs))
            columns[2].extend([weight] * len(logprobs))
    old_logprobs, token_advantages, token_weights = (
        torch.tensor(column, dtype=torch.float32, device=device) for column in columns
    )
    return old_logprobs, token_advantages, token_weights
