"""The options of a GRPO run."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from pathlib import Path

from asyncthink.tasks.rewards import RewardRule
from asyncthink.train.grpo_loss import Objective
from asyncthink.train.loading import ModelOptions
from asyncthink.train.schedule import check_decay, check_rates, learning_rate


@dataclass(frozen=True, slots=True)
class GRPOConfig:
    """``steps`` updates on ``prompts`` questions x ``group`` episodes each, drawn at ``temperature``; no agent draws
    more than ``budget`` tokens. ``minibatches``: optimizer steps on the episodes of one rollout. ``length``: tokens
    of a packed batch, which bounds memory and changes nothing else; ``cached``: tokens that the sampler's K/V cache
    holds (episodes that find no room wait). ``normalise``: divide advantages by the group's standard deviation.
    The learning rate warms up, stays flat, then falls to zero over the last ``decay`` of the steps (:mod:`.schedule`).
    ``max_skipped``: optimizer steps in a row whose loss or gradient is not finite that stop the run (:mod:`.steps`).
    Raises ValueError for numbers outside their range.
    """

    out: Path
    model: ModelOptions
    task: str = "countdown"
    mode: str = "asyncthink"
    pool: int = 4
    context: str = "shared"
    join: str = "exact"
    budget: int = 1024
    temperature: float = 1.0
    prompts: int = 8
    group: int = 8
    steps: int = 100
    minibatches: int = 1
    length: int = 8192
    cached: int = 65536
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
    tensorboard: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "prompts", "minibatches", "length", "cached", "save_every", "budget", "max_skipped"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.group < 2:
            raise ValueError(f"group: expected at least 2 (an advantage is relative to the others), got {self.group}")
        if self.prompts < self.minibatches:
            raise ValueError(f"minibatches: expected at most {self.prompts} (a question each), got {self.minibatches}")
        check_decay(self.decay)
        check_rates(self.learning_rate, self.weight_decay, self.clip)
        if self.model.bfloat16 is True:
            raise ValueError("bfloat16: expected False: the sampler would draw in other numbers than the trainer's")
        if not 0 < self.temperature < inf:
            raise ValueError(f"temperature: expected more than 0, got {self.temperature}")

    def rate(self, step: int) -> float:
        """Learning rate of step 0, 1, ..., ``steps`` - 1."""
        return learning_rate(step, self.steps, self.learning_rate, self.warmup, self.decay)
