"""Rollouts of a tiny model that often organizes, and policies that answer as a test wants."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import tiny_models as tm
from asyncthink import ForkJoinSampler, Options, SamplingParams
from asyncthink.episode.records import Episode, Trace
from asyncthink.tasks.rewards import RewardRule
from asyncthink.train.rollout import Grading, Rollout, draw_questions, roll_out
from scripted import PROMPTS
from toy_task import Counting

#: A share of wrong answers and format errors, so that rewards differ.
RULE = RewardRule(format_error=-0.5, weight=1.0)


def sampler(**options: Any) -> ForkJoinSampler:
    model, tok = tm.organizer()
    return ForkJoinSampler(model, tok, prompts=PROMPTS, num_pages=512, **options)


def rollouts(model: ForkJoinSampler, *, temperature: float = 1.0, questions: int = 1) -> list[list[Rollout]]:
    """Groups of four, of at most 40 tokens an agent."""
    params = SamplingParams(temperature=temperature, max_tokens=40)
    return roll_out(model, draw_questions([Counting()], 0, 0, questions), 4, params, Grading(RULE))


def answered(text: str | None, *, logprob: float = -0.5) -> Episode:
    """An episode without workers; without a text it broke the protocol."""
    trace = Trace(0, "organizer", text=text or "", finish="answer")
    for token, drawn in ((1, False), (2, True), (3, True)):
        trace.add(token, drawn, logprob * drawn, 0)
    return Episode("q", "asyncthink", traces=[trace], answer=text, finish="answer")


def plain(episode: Episode) -> dict[str, Any]:
    """An episode without times, and without what depends on the cache."""
    data = episode.to_dict()
    for name in ("wall_seconds", "critical_path_seconds", "step_times", "prefix_tokens"):
        del data[name]
    for event in data["events"]:
        del event["time"]
    return data


class InstantPolicy:
    """Every episode is there at once: ``answer(seed)``, or what it raises."""

    def __init__(self, answer: Callable[[int], Episode]) -> None:
        self.answer = answer

    def submit(self, question: str, params: SamplingParams, options: Options) -> Future[Episode]:
        future: Future[Episode] = Future()
        try:
            future.set_result(self.answer(params.seed))
        except Exception as error:
            future.set_exception(error)
        return future


class SilentPolicy:
    """No episode ever ends."""

    def __init__(self) -> None:
        self.futures: list[Future[Episode]] = []

    def submit(self, question: str, params: SamplingParams, options: Options) -> Future[Episode]:
        self.futures.append(Future())
        return self.futures[-1]
