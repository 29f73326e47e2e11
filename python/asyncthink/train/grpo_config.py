"""The options of a GRPO run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path

from asyncthink.tasks import Task
from asyncthink.tasks.rewards import RewardFunction, RewardRule
from asyncthink.train.advantages import SCALES, Scale
from asyncthink.train.grpo_loss import Objective
from asyncthink.train.loading import ModelOptions
from asyncthink.train.loggers import check_loggers
from asyncthink.train.rollout import CREDITS, Credit, Grading
from asyncthink.train.schedule import check_rates, check_schedule, learning_rate


@dataclass(frozen=True, slots=True)
class GRPOConfig:
    """The options of a GRPO run. Raises ValueError for numbers outside their range.

    Args:
        out: folder of the run.
        task: names separated by commas, a task, or several of either (:func:`asyncthink.tasks.tasks`).
        questions, group_size: each step trains on ``questions`` groups of ``group_size`` episodes that differ.
        drawn: groups drawn at first; None: ``questions``.
        rounds: where fewer than ``questions`` of them differ, as many as are missing are drawn again, until there have
            been this many rounds (:mod:`.groups`). 1: never.
        guide: what agents may write while they are sampled (:class:`asyncthink.episode.options.Guide`).
        max_tokens: tokens that one agent may draw.
        temperature: of the sampler.
        steps: rollouts of the run; each is followed by ``minibatches`` optimizer steps on its episodes.
        batch_tokens: tokens of a packed batch. It bounds memory and does not change the result.
        cache_tokens: capacity of the sampler's K/V cache in tokens. Episodes that do not fit wait.
        num_states: recurrent states that the sampler keeps, one for each running agent; None: by the free memory.
        fallback: whether the sampler may run the model on caches of its own (:class:`asyncthink.ForkJoinSampler`).
        learning_rate, warmup, decay: see :mod:`.schedule`.
        clip: largest gradient norm.
        max_skipped: consecutive optimizer steps without a finite loss and gradient that stop the run (:mod:`.steps`).
        scale, credit: how rewards become advantages (:class:`.rollout.Grading`).
        rule, objective: the reward, a :class:`RewardRule` or any function (:mod:`asyncthink.tasks.rewards`); the loss.
        validate_every: steps between validations, each also before the first step; 0: none. The checkpoint that solves
            most, then the one with the shortest critical path, is kept in ``out/best-N`` (:mod:`.validation`).
        validate_puzzles, validate_temperature: of a validation. None: greedy, but at ``temperature`` in mode parallel.
        export: folder that always holds the newest weights.
        plot: draw ``out/curve.png`` with every checkpoint.
        log_to: where metrics also go (:mod:`.loggers`).
    """

    out: Path
    model: ModelOptions
    task: str | Task | Sequence[str | Task] = "countdown"
    mode: str = "asyncthink"
    pool: int = 4
    depth: int = 1
    context: str = "shared"
    join: str = "exact"
    guide: str = "off"
    max_tokens: int = 1024
    temperature: float = 1.0
    questions: int = 8
    group_size: int = 8
    drawn: int | None = None
    rounds: int = 3
    steps: int = 100
    minibatches: int = 1
    batch_tokens: int = 8192
    cache_tokens: int = 65536
    num_states: int | None = None
    fallback: bool | None = None
    learning_rate: float = 1e-4
    warmup: int = 5
    decay: float = 0.0
    weight_decay: float = 0.0
    clip: float = 1.0
    max_skipped: int = 5
    seed: int = 0
    scale: Scale = "none"
    credit: Credit = "episode"
    rule: RewardFunction = field(default_factory=RewardRule)
    objective: Objective = field(default_factory=Objective)
    validate_every: int = 0
    validate_puzzles: int = 200
    validate_temperature: float | None = None
    save_every: int = 10
    threads: int = 1
    resume: bool = False
    export: Path | None = None
    plot: bool = False
    log_to: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        positive = ("steps", "questions", "minibatches", "batch_tokens", "cache_tokens", "save_every", "max_tokens")
        for name in (*positive, "max_skipped", "rounds", "validate_puzzles"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.num_states is not None and self.num_states < 1:
            raise ValueError(f"num_states: expected at least 1, got {self.num_states}")
        if self.fallback not in (None, True, False):
            raise ValueError(f"fallback: expected True, False or None, got {self.fallback!r}")
        if self.group_size < 2:
            raise ValueError(f"group_size: expected at least 2 (advantages are relative), got {self.group_size}")
        if self.drawn is not None and self.drawn < self.questions:
            raise ValueError(f"drawn: expected at least the {self.questions} questions of a step, got {self.drawn}")
        if self.questions < self.minibatches:
            raise ValueError(
                f"minibatches: expected at most {self.questions} (one question each), got {self.minibatches}"
            )
        check_loggers(self.log_to)
        for name, value, known in (("scale", self.scale, SCALES), ("credit", self.credit, CREDITS)):
            if value not in known:
                raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r}")
        if self.credit == "marginal" and self.mode != "parallel":
            raise ValueError(f"credit: expected mode parallel for marginal credit, got mode {self.mode}")
        if self.validate_every < 0:
            raise ValueError(f"validate_every: expected at least 0, got {self.validate_every}")
        if self.validate_temperature is not None and not 0 <= self.validate_temperature < inf:
            raise ValueError(f"validate_temperature: expected at least 0, got {self.validate_temperature}")
        check_schedule(self.warmup, self.decay)
        check_rates(self.learning_rate, self.weight_decay, self.clip)
        if self.model.bfloat16 is True:
            raise ValueError("bfloat16: expected False (sampler and trainer must compute in the same dtype), got True")
        if not 0 < self.temperature < inf:
            raise ValueError(f"temperature: expected more than 0, got {self.temperature}")

    def rate(self, step: int) -> float:
        """Learning rate of step 0, 1, ..., ``steps`` - 1."""
        return learning_rate(step, self.steps, self.learning_rate, self.warmup, self.decay)

    @property
    def grading(self) -> Grading:
        """How the episodes of a group become advantages."""
        return Grading(self.rule, self.scale, self.credit)

    @property
    def validation_temperature(self) -> float:
        """The temperature of validations."""
        if self.validate_temperature is not None:
            return self.validate_temperature
        return self.temperature if self.mode == "parallel" else 0.0
