"""The reward of an episode. No torch.

:class:`RewardRule` has the terms of the paper (AsyncThink, arXiv 2510.26658, section 3.2) and one on the path::

    R = format_error                                  if the protocol was broken, else
    R = (1 - complete) share + complete [all]         what is right
      + weight min(eta, threshold) / threshold        concurrency: the paper's, in an organized episode
      + path_weight [all] max(0, 1 - L / path_reference)      time: L critical-path tokens, once all is right

``share`` is the correct share of the answer in [0, 1], ``[all]`` is 1 if that is all. A reward of one's own is any
function of a task, a puzzle and an episode (:func:`reward`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, TypeAlias

from asyncthink.episode.records import Episode
from asyncthink.tasks import Task
from asyncthink.tasks.grading import grade
from asyncthink.tasks.named import imported

Reading = Literal["agents", "workers"]
READINGS = ("agents", "workers")


def joined(episode: Episode) -> set[int]:
    """The agents whose work can have reached the answer: agent 0, the workers that it joined, those that they joined.

    In "parallel" mode all traces answer, so all count.
    """
    if episode.mode == "parallel":
        return set(range(len(episode.traces)))
    agents: set[int] = set()
    waiting = [0] if episode.traces else []
    while waiting:
        agent = waiting.pop()
        agents.add(agent)
        waiting += [join.worker for join in episode.traces[agent].joins if join.worker not in agents]
    return agents


def eta(episode: Episode, reading: Reading = "agents", only_joined: bool = False) -> float:
    """The concurrency ratio in [0, 1]: the mean share of the pool that decodes, over a critical path of L tokens.

    The paper allows two readings, with c the pool's capacity:

    - ``agents``: tokens drawn by all agents / (L c);
    - ``workers``: tokens drawn by workers / (L (c - 1)), 0 for a pool without workers.

    ``only_joined`` leaves out agents that nobody joined (:func:`joined`). Raises ValueError for another reading.

    >>> eta(Episode("q", "asyncthink", pool=4))
    0.0
    """
    if reading not in READINGS:
        raise ValueError(f"reading: expected one of {', '.join(READINGS)}, got {reading!r}")
    path = episode.critical_path_tokens
    if not path:
        return 0.0
    agents = joined(episode) if only_joined else range(len(episode.traces))
    traces = [episode.traces[agent] for agent in agents]
    if reading == "agents":
        return sum(trace.decoded for trace in traces) / (path * episode.pool)
    drawn = sum(trace.decoded for trace in traces if trace.role == "worker")
    return drawn / (path * (episode.pool - 1)) if episode.pool > 1 else 0.0


@dataclass(frozen=True, slots=True)
class RewardRule:
    """The reward of the formula above, and its parameters. The defaults are the paper's.

    Args:
        format_error: reward of an episode that broke the protocol.
        weight: lambda, the weight of the concurrency reward. It pays for tokens of workers that are joined, useful or
            not; workers that nobody joins earn nothing.
        threshold: tau; a concurrency ratio above it is rewarded no more than tau.
        reading: which ratio (:func:`eta`).
        aggregate: how ``parallel`` traces become one answer (:func:`asyncthink.tasks.grading.final_answer`).
        complete: the part of the accuracy that is paid only for a complete answer, in [0, 1].
        path_weight: weight of the reward for a short critical path, of any mode. Tokens beside the path earn nothing.
        path_reference: the path in tokens from which on nothing is paid, such as the limit of tokens an agent.

    Raises ValueError for a format error that is not finite, a weight below 0, a threshold outside (0, 1], a
    ``complete`` outside [0, 1], and a path reward without a reference of at least 1.
    """

    format_error: float = -0.5
    weight: float = 0.2
    threshold: float = 0.75
    reading: Reading = "agents"
    aggregate: str | None = None
    complete: float = 0.0
    path_weight: float = 0.0
    path_reference: int | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.format_error):
            raise ValueError(f"format_error: expected a finite number, got {self.format_error}")
        for name in ("weight", "path_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: expected at least 0, got {getattr(self, name)}")
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold: expected a ratio in (0, 1], got {self.threshold}")
        if self.reading not in READINGS:
            raise ValueError(f"reading: expected one of {', '.join(READINGS)}, got {self.reading!r}")
        if not 0 <= self.complete <= 1:
            raise ValueError(f"complete: expected a share in [0, 1], got {self.complete}")
        if self.path_weight and (self.path_reference is None or self.path_reference < 1):
            raise ValueError(f"path_reference: expected at least 1 for a path reward, got {self.path_reference}")

    def __call__(self, task: Task, puzzle: Any, episode: Episode) -> Reward:
        """Grade one episode. Only an organizer's concurrency is rewarded: the baselines cannot choose theirs."""
        share = grade(task, puzzle, episode, self.aggregate)
        ratio, concurrency, path = eta(episode, self.reading), 0.0, 0.0
        if self.weight and episode.mode == "asyncthink":
            useful = eta(episode, self.reading, only_joined=True)
            concurrency = self.weight * min(useful, self.threshold) / self.threshold
        if self.path_weight and self.path_reference and share >= 1:
            path = self.path_weight * max(0.0, 1 - episode.critical_path_tokens / self.path_reference)
        right = (1 - self.complete) * share + self.complete * (share >= 1)
        return scored(episode, share, ratio, right + concurrency + path, self.format_error, concurrency, path)


def scored(
    episode: Episode,
    accuracy: float,
    ratio: float,
    total: float,
    format_error: float | None = None,
    concurrency: float = 0.0,
    path: float = 0.0,
) -> Reward:
    """A :class:`Reward` whose total is ``format_error``, unless that is None, if the episode broke the protocol.

    Parallel traces are independent: each of them must have failed.
    """
    if episode.mode == "parallel":
        broken = all(trace.returned is None for trace in episode.traces)
    else:
        broken = bool(episode.format_errors) or episode.answer is None
    paid = format_error if broken and format_error is not None else total
    return Reward(accuracy, ratio, concurrency, broken, paid, path)


@dataclass(frozen=True, slots=True)
class Reward:
    """The terms of one episode's reward, and the reward itself (``total``).

    ``accuracy`` is the correct share, ``concurrency`` and ``path`` are the weighted terms. They are reported even if
    the protocol was ``broken``.
    """

    accuracy: float
    eta: float
    concurrency: float
    broken: bool
    total: float
    path: float = 0.0


RewardFunction: TypeAlias = Callable[[Task, Any, Episode], "Reward | float"]

#: Rewards by name. An entry of one's own, or ``module:name``, needs nothing else.
REWARDS: dict[str, RewardFunction] = {"paper": RewardRule()}


def reward(spec: str | RewardFunction) -> RewardFunction:
    """A reward: a function as it is, one of :data:`REWARDS` by its name, or an imported one (``module:name``).

    Raises ValueError for an unknown name, and for what cannot be called.

    >>> reward("asyncthink.tasks.rewards:RewardRule") == reward("paper")
    True
    """
    made: Any = spec
    if isinstance(spec, str):
        if spec not in REWARDS and ":" not in spec:
            raise ValueError(f"reward: expected one of {', '.join([*REWARDS, 'MODULE:NAME'])}, got {spec!r}")
        made = REWARDS[spec] if spec in REWARDS else imported("reward", spec)
    if not callable(made):
        raise ValueError(f"reward: expected a function of a task, a puzzle and an episode, got {made!r:.80}")
    function: RewardFunction = made
    return function


def evaluate(function: RewardFunction, task: Task, puzzle: Any, episode: Episode) -> Reward:
    """The reward that ``function`` gives; of a bare number the other terms are filled in.

    Raises ValueError for anything else than a :class:`Reward` or a number.
    """
    given = function(task, puzzle, episode)
    if isinstance(given, Reward):
        return given
    if not isinstance(given, Real):
        raise ValueError(f"reward: expected a Reward or a number, got {given!r:.80}")
    aggregate = getattr(function, "aggregate", None)
    return scored(episode, grade(task, puzzle, episode, aggregate), eta(episode), float(given))


def marginal(function: RewardFunction, task: Task, puzzle: Any, episode: Episode) -> list[float]:
    """What each trace of a "parallel" episode adds: the episode's reward less that without the trace.

    The reward of the others does not depend on the trace, so the gradient of the expected reward stays the same, with
    less noise: a trace is not paid for what the others found as well. Raises ValueError for another mode.
    """
    if episode.mode != "parallel":
        raise ValueError(f"credit: expected an episode of mode parallel for marginal credit, got {episode.mode}")
    whole = evaluate(function, task, puzzle, episode).total
    agents = range(len(episode.traces))
    without = [[trace for trace in episode.traces if trace.agent != agent] for agent in agents]
    return [whole - evaluate(function, task, puzzle, dataclasses.replace(episode, traces=o)).total for o in without]
