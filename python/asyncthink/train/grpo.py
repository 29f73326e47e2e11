"""GRPO training: roll out, grade, take a gradient step, forget the cache, again.

The questions and random streams of step k are a pure function of (seed, k), so a resumed run repeats the
uninterrupted one exactly (same thread count, same machine).
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from asyncthink.engine.sampler import ForkJoinSampler, SamplingParams
from asyncthink.model.files import device_for
from asyncthink.tasks import tasks
from asyncthink.tasks.grading import how_to_aggregate
from asyncthink.train.checkpoint import Progress, load_state, save_checkpoint, save_model
from asyncthink.train.distributed import World, gradients
from asyncthink.train.grpo_loss import Terms, grpo_terms
from asyncthink.train.grpo_config import GRPOConfig
from asyncthink.train.loading import Loaded, load, optimizer
from asyncthink.train.logprobs import token_logprobs
from asyncthink.train.packed_attention import use_packed_attention
from asyncthink.train.packing import IGNORED, pack
from asyncthink.train.progress import Reporter
from asyncthink.train.rollout import Rollout, drawn, figures, finite_mean, measures, packs, questions, roll_out
from asyncthink.train.runs import begin_run, find_run
from asyncthink.train.steps import Steps
from asyncthink.train.demonstrations import rows

__all__ = ["GRPOConfig", "Trainer", "train_grpo"]


def train_grpo(config: GRPOConfig) -> Path:
    """Run (or resume) the training; returns the folder of the last checkpoint.

    Writes ``out/config.json``, ``out/metrics.jsonl`` and ``out/step-N``. Raises ValueError for a bad configuration, for
    an ``out`` that already holds a run without ``resume``, for ``resume`` without one, and rather than save a weight
    that is not finite; RuntimeError after ``max_skipped`` skipped steps in a row.
    """
    found = find_run(config.out, config.resume)
    if config.plot:
        import asyncthink.train.curve  # noqa: F401 - a missing package must not end a run at its first checkpoint
    with World.start(device_for(config.model.device)) as world:
        torch.set_num_threads(config.threads)
        if config.model.bfloat16 == "auto":  # the sampler decodes in the dtype of the weights
            config = dataclasses.replace(config, model=dataclasses.replace(config.model, bfloat16=False))
        trainer = Trainer(config, load(config.model, found), world, found)
        begin_run(config.out, config, world)
        return trainer.run()


class Trainer:
    """One process of a run."""

    def __init__(self, config: GRPOConfig, loaded: Loaded, world: World, newest: Path | None) -> None:
        self.config, self.loaded, self.world = config, loaded, world
        self.tasks = tasks(config.task)
        for task in self.tasks:
            how_to_aggregate(task, config.rule.aggregate)  # refuses what the task has not
        self.model, tokenizer = loaded.model, loaded.tokenizer
        self.reference = self._reference()
        use_packed_attention(self.model, moves=config.join != "exact")
        self.optimizer = optimizer(self.model, config.learning_rate, config.weight_decay)
        self.progress = load_state(newest, self.model, self.optimizer) if newest else Progress()
        self.steps = Steps(self.optimizer, config.clip, config.max_skipped, self.progress.left_out)
        if self.progress.step >= config.steps:
            raise ValueError(f"steps: expected more than the {self.progress.step} that are done, got {config.steps}")
        if config.prompts % world.size:
            raise ValueError(f"prompts: expected a multiple of {world.size} processes, got {config.prompts}")
        self.sampler = ForkJoinSampler(
            self.model,
            tokenizer,
            prompts=self.loaded.prompts,
            mode=config.mode,
            pool=config.pool,
            context=config.context,
            join=config.join,  # type: ignore[arg-type]
            num_pages=-(-config.cached // 16),
        )
        self.params = SamplingParams(temperature=config.temperature, max_tokens=config.budget)

    def _reference(self) -> torch.nn.Module | None:
        """The weights at the start of the run, frozen, where a KL term asks for them."""
        if not self.config.objective.kl:
            return None
        frozen = load(dataclasses.replace(self.config.model, lora=0)).model
        use_packed_attention(frozen, moves=self.config.join != "exact")
        frozen.requires_grad_(False)
        frozen.train(False)
        return frozen

    def run(self) -> Path:
        config = self.config
        folder, before, start = config.out, self.progress.seconds, time.perf_counter()
        with Reporter(
            config.out / "metrics.jsonl", config.steps, self.progress.step, self.world, config.tensorboard
        ) as reporter:
            for step in range(self.progress.step, config.steps):
                values = self.step(step)
                tokens = self.progress.tokens + round(values["total_tokens"] * values["episodes"])
                seconds = before + time.perf_counter() - start
                self.progress = Progress(step + 1, tokens, seconds, self.steps.left_out)
                shown = "reward {reward:.3f} solved {solved:.0%} errors {format_errors:.0%} eta {eta:.2f}"
                reporter.step(self.progress, values, shown.format(**values))
                if self.progress.step % config.save_every == 0 or self.progress.step == config.steps:
                    folder = self._save()
        return folder

    def step(self, step: int) -> dict[str, float]:
        """One rollout and its optimizer steps; returns the figures of all processes together."""
        config, clock = self.config, time.perf_counter()
        asked = questions(self.tasks, config.seed, step, config.prompts)
        groups = roll_out(
            self.sampler, self.world.mine(asked), config.group, self.params, config.rule, config.normalise
        )
        rolled = time.perf_counter()
        losses = [self._update(part, config.rate(step)) for part in self._minibatches(groups)]
        self.sampler.refresh()
        drew = figures(self.world.gather([measures(rollout) for group in groups for rollout in group]))
        seconds = {"seconds_rollout": rolled - clock, "seconds_update": time.perf_counter() - rolled}
        means = _means(self.world.gather([_means(losses) | seconds]))
        counts = {"silent": self.steps.left_out.silent, "skipped": self.steps.left_out.skipped}
        return drew | means | counts | {"learning_rate": config.rate(step)}

    def _minibatches(self, groups: Sequence[list[Rollout]]) -> list[list[Rollout]]:
        """This process's episodes of each minibatch, perhaps none; a question's place decides, whoever drew it.

        Episodes that are left out of their group are left out here.
        """
        parts: list[list[Rollout]] = [[] for _ in range(self.config.minibatches)]
        for place, group in zip(self.world.mine(range(self.config.prompts)), groups, strict=True):
            parts[place % self.config.minibatches] += [rollout for rollout in group if rollout.usable]
        return parts

    def _update(self, rollouts: Sequence[Rollout], rate: float) -> dict[str, float]:
        """One optimizer step on these episodes; gradients are summed over processes."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        objective = self.config.objective
        episodes = [rollout.episode for rollout in rollouts]
        divisor = sum(self.world.gather([objective.divisor(episodes)]))
        weights = objective.weights(episodes)
        # An episode without advantage has no gradient but that of its KL term.
        kept = [k for k, rollout in enumerate(rollouts) if rollout.advantage or objective.kl]
        sums = {"loss": 0.0, "clipped": 0.0, "kl": 0.0, "off_policy": 0.0, "tokens": 0.0}
        for batch in packs(rollouts, kept, self.config.length):
            terms = self._terms([rollouts[k] for k in batch], [weights[k] for k in batch])
            (terms.loss / divisor).backward()  # type: ignore[no-untyped-call]
            sums["loss"] += float(terms.loss.detach()) / divisor
            for name in ("clipped", "kl", "off_policy", "tokens"):
                sums[name] += getattr(terms, name)
        everyone = self.world.gather([sums])
        total = {name: sum(each[name] for each in everyone) for name in sums}
        self.world.sum_(gradients(self.model.parameters()))
        # A mean over no episode is none: the step is skipped, not silent.
        loss = total["loss"] if divisor else math.nan
        norm = self.steps.take(loss)
        means = {name: total[name] / max(1.0, total["tokens"]) for name in ("clipped", "kl", "off_policy")}
        return {"loss": loss, **means, "gradient_norm": norm}

    def _terms(self, rollouts: Sequence[Rollout], weights: Sequence[float]) -> Terms:
        """The loss terms of some episodes in one packed batch."""
        batch = pack([rows(rollout.episode) for rollout in rollouts], 2**62).to(self.loaded.device)
        learned = batch.labels[0] != IGNORED
        old, advantage, weight = drawn(rollouts, weights, self.loaded.device)
        if int(learned.sum()) != len(old):
            raise RuntimeError(f"packing: expected {len(old)} drawn tokens, got {int(learned.sum())}")
        heat, objective = self.config.temperature, self.config.objective
        logp = token_logprobs(self.model, batch, heat)[learned]
        reference = None
        if self.reference is not None:
            with torch.no_grad():
                reference = token_logprobs(self.reference, batch, heat)[learned]
        return grpo_terms(objective, logp, old, advantage, weight, reference)

    def _save(self) -> Path:
        config = self.config
        settings: dict[str, Any] = {
            "task": config.task,
            "sampling": {"temperature": 0.0, "max_tokens": config.budget},
        }
        folder = config.out / f"step-{self.progress.step:06d}"
        if self.world.is_main:
            saved = (self.model, self.loaded.tokenizer, self.loaded.prompts, settings)
            # The checkpoint comes last: a run that was killed before it does all of this again.
            if config.export:
                save_model(config.export, *saved)
            if config.plot:
                from asyncthink.train.curve import plot_curves

                plot_curves({config.out.name: config.out / "metrics.jsonl"}, config.out / "curve.png")
            folder = save_checkpoint(config.out, *saved, self.optimizer, self.progress)
        self.world.barrier()
        return folder


def _means(values: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: finite_mean([each[name] for each in values]) for name in values[0]}
