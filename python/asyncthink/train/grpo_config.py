"""The options of a GRPO run."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from pathlib import Path

from asyncthink.tasks.rewards import RewardRule
from asyncthink.train.grpo_loss import Objective
from asyncthink.train.loading import ModelOptions
from asyncthink.train.loggers import check_loggers
from asyncthink.train.schedule import check_decay, check_rates, learning_rate


@dataclass(frozen=True, slots=True)
class GRPOConfig:
    """The options of a GRPO run. Raises ValueError for numbers outside their range.

    Args:
        out: folder of the run.
        questions, group_size: each step draws ``questions`` questions and ``group_size`` episodes of each.
        guide: what agents may write while they are sampled (:class:`asyncthink.episode.options.Guide`).
        max_tokens: tokens that one agent may draw.
        temperature: of the sampler.
        steps: rollouts of the run; each is followed by ``minibatches`` optimizer steps on its episodes.
        batch_tokens: tokens of a packed batch. It bounds memory and does not change the result.
        cache_tokens: capacity of the sampler's K/V cache in tokens. Episodes that do not fit wait.
        learning_rate, warmup, decay: see :mod:`.schedule`.
        clip: largest gradient norm.
        max_skipped: consecutive optimizer steps without a finite loss and gradient that stop the run (:mod:`.steps`).
        normalise: divide advantages by the group's standard deviation (:mod:`.advantages`).
        rule, objective: the reward and the loss.
        export: folder that always holds the newest weights.
        plot: draw ``out/curve.png`` with every checkpoint.
        log_to: where metrics also go (:mod:`.loggers`).
    """

    out: Path
    model: ModelOptions
    task: str = "countdown"
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
    steps: int = 100
    minibatches: int = 1
    batch_tokens: int = 8192
    cache_tokens: int = 65536
    learning_rate: float = 1e-4
    warmup: int = 5
    decay: float = 0.0
    weight_decay: float = 0.0
    clip: float = 1.0
    max_skipped: int = 5
    seed: int = 0
    normalise: bool = True
    rule: RewardRule = field(default_factory=RewardRule)
    objective: Objective = field(default_factory=Objective)
    save_every: int = 10
    threads: int = 1
    resume: bool = False
    export: Path | None = None
    plot: bool = False
    log_to: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        positive = ("steps", "questions", "minibatches", "batch_tokens", "cache_tokens", "save_every", "max_tokens")
        for name in (*positive, "max_skipped"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.group_size < 2:
            raise ValueError(f"group_size: expected at least 2 (advantages are relative), got {self.group_size}")
        if self.questions < self.minibatches:
            raise ValueError(
                f"minibatches: expected at most {self.questions} (one question each), got {self.minibatches}"
            )
        check_loggers(self.log_to)
        check_decay(self.decay)
        check_rates(self.learning_rate, self.weight_decay, self.clip)
        if self.model.bfloat16 is True:
            raise ValueError("bfloat16: expected False (sampler and trainer must compute in the same dtype), got True")
        if not 0 < self.temperature < inf:
            raise ValueError(f"temperature: expected more than 0, got {self.temperature}")

    def rate(self, step: int) -> float:
        """Learning rate of step 0, 1, ..., ``steps`` - 1."""
        return learning_rate(step, self.steps, self.learning_rate, self.warmup, self.decay)
