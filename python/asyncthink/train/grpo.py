"""GRPO training. One step: roll out, grade, take the optimizer steps, drop the sampler's cached prefixes.

The questions and random streams of a step are a pure function of the seed and its number in the stream
(:mod:`.stream`), so a resumed run repeats the uninterrupted one exactly (same thread count, same machine).
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from asyncthink.engine.guided import GuidedLogits
from asyncthink.engine.open import stop_ids
from asyncthink.episode.options import Guide
from asyncthink.episode.params import SamplingParams
from asyncthink.episode.records import Episode
from asyncthink.model.files import device_for
from asyncthink.protocol.codec import Codec
from asyncthink.tasks import task_names, tasks
from asyncthink.tasks.grading import how_to_aggregate
from asyncthink.train.best import best_figures, save_best
from asyncthink.train.checkpoint import save_checkpoint, save_model
from asyncthink.train.distributed import World
from asyncthink.train.groups import DrawnGroups, draw_groups
from asyncthink.train.grpo_config import GRPOConfig
from asyncthink.train.grpo_loss import LossSums, grpo_loss
from asyncthink.train.guided import DrawnMasks, drawn_masks
from asyncthink.train.idle import idle_pass
from asyncthink.train.loading import Loaded, load, optimizer
from asyncthink.train.logprobs import token_logprobs, token_scores
from asyncthink.train.metrics import episode_metrics, mean_metrics, step_metrics, update_metrics
from asyncthink.train.packed_attention import use_packed_attention
from asyncthink.train.packing import IGNORED, pack
from asyncthink.train.progress import Reporter
from asyncthink.train.rollout import Rollout, draw_questions, drawn_tokens, roll_out, split_into_batches
from asyncthink.train.rollout_sampler import OpenSampler, local_sampler
from asyncthink.train.rows import rows
from asyncthink.train.runs import begin_run, find_run
from asyncthink.train.state import Progress, load_state
from asyncthink.train.steps import Steps
from asyncthink.train.stream import Stream
from asyncthink.train.validation import better, puzzles_for, validate
from asyncthink.train.whole_copy import decoding_model, refresh_copy

__all__ = ["GRPOConfig", "Trainer", "train_grpo"]

SHOWN = (
    "reward {reward:.3f} solved {solved:.0%} errors {format_errors:.0%} path {critical_path_tokens:.0f} eta {eta:.2f}"
)
VALIDATED = "solved {solved:.1%} path {critical_path_tokens:.1f} errors {format_errors:.1%}"
SUMMED = ("loss", "tokens", "clipped", "kl", "off_policy", "entropy", "ratio", "ratio_squared")


def train_grpo(config: GRPOConfig, open_sampler: OpenSampler = local_sampler) -> Path:
    """Train, or resume a run; returns the folder of the last checkpoint.

    ``open_sampler`` makes what draws the rollouts; by default it shares the trained weights.

    Writes ``out/config.json``, ``out/metrics.jsonl``, ``out/step-N`` and, with validations, ``out/best-N``. Raises
    ValueError for a bad configuration, for an ``out`` that already holds a run without ``resume``, for ``resume``
    without a run, and instead of saving a weight that is not finite; RuntimeError after ``max_skipped`` consecutive
    skipped steps.
    """
    newest = find_run(config.out, config.resume)
    if config.plot:
        import asyncthink.train.curve  # noqa: F401 - a missing package must not end a run at its first checkpoint
    with World.start(device_for(config.model.device)) as world:
        torch.set_num_threads(config.threads)
        if config.model.bfloat16 == "auto":  # the sampler decodes in the dtype of the weights
            config = dataclasses.replace(config, model=dataclasses.replace(config.model, bfloat16=False))
        loaded = load(config.model, newest, world).for_depth(config.depth, [config.context])
        trainer = Trainer(config, loaded, world, newest, open_sampler)
        begin_run(config.out, config, world)
        return trainer.train()


class Trainer:
    """One process of a run."""

    def __init__(
        self,
        config: GRPOConfig,
        loaded: Loaded,
        world: World,
        newest: Path | None,
        open_sampler: OpenSampler = local_sampler,
    ) -> None:
        self.config, self.loaded, self.world = config, loaded, world
        self.tasks = tasks(config.task)
        for task in self.tasks:
            # raises for an aggregate that the task does not have
            how_to_aggregate(task, getattr(config.rule, "aggregate", None))
        self.model = loaded.model
        self.reference = self._reference()
        self.rows_reason = use_packed_attention(self.model, moves=config.join != "exact")
        self.optimizer = optimizer(self.model, config.learning_rate, config.weight_decay)
        self.progress = load_state(newest, self.model, self.optimizer, world) if newest else Progress()
        self.steps = Steps(self.optimizer, config.clip, config.max_skipped, self.progress.left_out)
        if self.progress.step >= config.steps:
            raise ValueError(f"steps: expected more than the {self.progress.step} that are done, got {config.steps}")
        self.stream = Stream.of("grpo", config.model.model, newest)
        self.validation = puzzles_for(self.tasks, config.validate_puzzles) if config.validate_every else []
        self.decoding = decoding_model(config.model, newest, loaded)
        self.sampler = open_sampler(dataclasses.replace(loaded, model=self.decoding), config)
        self.params = SamplingParams(temperature=config.temperature, max_tokens=config.max_tokens)

    def _reference(self) -> torch.nn.Module | None:
        """The weights at the start of the run, frozen; None without a KL term."""
        if not self.config.objective.kl:
            return None
        reference = load(dataclasses.replace(self.config.model, lora=0), world=self.world).model
        use_packed_attention(reference, moves=self.config.join != "exact")
        reference.requires_grad_(False)
        reference.train(False)
        return reference

    def train(self) -> Path:
        """Take the remaining steps; returns the folder of the last checkpoint."""
        config = self.config
        folder, before, start = config.out, self.progress.seconds, time.perf_counter()
        with Reporter(
            config.out / "metrics.jsonl", config.steps, self.progress.step, self.world, config.log_to
        ) as reporter:
            if self.rows_reason is not None:
                reporter.say(self.rows_reason)
            if self.progress.step == 0:
                self._validate(reporter)
            for step in range(self.progress.step, config.steps):
                metrics = self.step(step)
                tokens = self.progress.tokens + round(metrics["total_tokens"] * metrics["episodes"])
                seconds = before + time.perf_counter() - start
                self.progress = Progress(step + 1, tokens, seconds, self.steps.left_out)
                reporter.step(self.progress, metrics, SHOWN.format(**metrics))
                last = self.progress.step == config.steps
                if last or (config.validate_every and self.progress.step % config.validate_every == 0):
                    self._validate(reporter)
                if last or self.progress.step % config.save_every == 0:
                    folder = self._save()
        return folder

    def step(self, step: int) -> dict[str, float]:
        """One rollout and its optimizer steps; returns the metrics of all processes together."""
        config, start = self.config, time.perf_counter()
        groups = draw_groups(
            self.world,
            functools.partial(draw_questions, self.tasks, config.seed, self.stream.start + step),
            lambda questions: roll_out(self.sampler, questions, config.group_size, self.params, config.grading),
            config.questions,
            config.drawn or config.questions,
            config.rounds,
        )
        rolled_out = time.perf_counter()
        updates = [self._update(minibatch, config.rate(step)) for minibatch in groups.minibatches(config.minibatches)]
        updates = updates or [self._nothing_learned(groups)]
        refresh_copy(self.decoding, self.model)
        self.sampler.refresh()
        seconds = {"seconds_rollout": rolled_out - start, "seconds_update": time.perf_counter() - rolled_out}
        reports = [episode_metrics(rollout) for group in groups.mine for rollout in group]
        episodes = step_metrics(self.world.gather(reports))
        means = mean_metrics(self.world.gather([mean_metrics(updates) | seconds]))
        counts = {"silent": self.steps.left_out.silent, "skipped": self.steps.left_out.skipped}
        return episodes | groups.metrics() | means | counts | {"learning_rate": config.rate(step)}

    def _nothing_learned(self, groups: DrawnGroups) -> dict[str, float]:
        """The step in which no group differs: silent, or skipped if no episode could be used."""
        norm = self.steps.take(0.0 if groups.usable else math.nan)
        return update_metrics(0.0 if groups.usable else math.nan, norm, {})

    def _update(self, rollouts: Sequence[Rollout], rate: float) -> dict[str, float]:
        """One optimizer step on these episodes; gradients are summed over processes."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        objective = self.config.objective
        episodes = [rollout.episode for rollout in rollouts]
        (divisor,) = self.world.total([objective.divisor(episodes)])
        weights = objective.weights(episodes)
        regularised = objective.kl or objective.entropy  # without an advantage only these have a gradient
        kept = [number for number, rollout in enumerate(rollouts) if any(rollout.advantages) or regularised]
        sums = dict.fromkeys(SUMMED, 0.0)
        batches = split_into_batches(rollouts, kept, self.config.batch_tokens)
        passes = self.world.most(len(batches))
        for batch in batches:
            with self.loaded.backward_products():
                batch_sums = self._loss([rollouts[number] for number in batch], [weights[number] for number in batch])
                (batch_sums.loss / divisor).backward()  # type: ignore[no-untyped-call]
            for name in SUMMED:
                value = getattr(batch_sums, name)
                sums[name] += float(value.detach() if isinstance(value, torch.Tensor) else value)
        for _ in range(len(batches), passes):
            idle_pass(self.model, self.loaded.device, *([] if self.reference is None else [self.reference]))
        total = dict(zip(sums, self.world.total(list(sums.values())), strict=True))
        loss = total["loss"] / divisor if divisor else math.nan  # NaN makes the step a skipped one, not a silent one
        return update_metrics(loss, self.steps.take(loss), total)

    def _loss(self, rollouts: Sequence[Rollout], weights: Sequence[float]) -> LossSums:
        """The loss of some episodes in one packed batch."""
        batch = pack([rows(rollout.episode) for rollout in rollouts], 2**62).to(self.loaded.device)
        learned = batch.labels[0] != IGNORED
        old_logprobs, advantages, token_weights = drawn_tokens(rollouts, weights, self.loaded.device)
        if int(learned.sum()) != len(old_logprobs):
            raise RuntimeError(f"packing: expected {len(old_logprobs)} drawn tokens, got {int(learned.sum())}")
        masks = self._masks([rollout.episode for rollout in rollouts])
        temperature = self.config.temperature
        objective = self.config.objective
        learn = objective.entropy > 0
        scores = token_scores(self.model, batch, temperature, masks=masks, learn_entropy=learn)
        logprobs, entropy = (score[learned] for score in scores)
        reference_logprobs = None
        if self.reference is not None:
            with torch.no_grad():
                reference_logprobs = token_logprobs(self.reference, batch, temperature, masks=masks)[learned]
        return grpo_loss(objective, logprobs, old_logprobs, advantages, token_weights, reference_logprobs, entropy)

    @functools.cached_property
    def _guided(self) -> GuidedLogits:
        return GuidedLogits(Codec(self.loaded.tokenizer, stop_ids(self.model)))

    def _masks(self, episodes: Sequence[Episode]) -> DrawnMasks | None:
        """The tokens among which each token was drawn; None without a guide."""
        if self.config.guide == Guide.OFF:
            return None
        model: Any = self.model
        vocabulary = model.get_output_embeddings().weight.shape[0]
        masks = drawn_masks(episodes, self._guided.masks(vocabulary))
        return None if masks is None else masks.to(self.loaded.device)

    def _validate(self, reporter: Reporter) -> None:
        """Solve the validation puzzles, log it, and keep the weights if they are the best so far."""
        if not self.validation:
            return
        config = self.config
        params = SamplingParams(temperature=config.validation_temperature, max_tokens=config.max_tokens)
        figures = validate(self.sampler, self.validation, params, config.rule, self.world)
        shown = f"validation after {self.progress.step}: {VALIDATED.format(**figures)}"
        reporter.note(self.progress, {"validation": figures}, shown)
        if better(figures, best_figures(config.out)):
            settings = self._settings() | {"validation": figures | {"step": self.progress.step}}
            saved = (self.model, self.loaded.tokenizer, self.loaded.prompts, settings)
            save_best(config.out, *saved, self.progress.step, self.world)

    def _settings(self) -> dict[str, Any]:
        """The entries of ``asyncthink.json`` beside the prompts."""
        return {
            "task": task_names(self.config.task),
            "sampling": {"temperature": 0.0, "max_tokens": self.config.max_tokens},
            **self.stream.entry(self.progress.step),
        }

    def _save(self) -> Path:
        config = self.config
        saved = (self.model, self.loaded.tokenizer, self.loaded.prompts, self._settings())
        # The checkpoint comes last: a run killed before it repeats all of this.
        if config.export:
            save_model(config.export, *saved, self.world)
        if config.plot and self.world.is_main:
            from asyncthink.train.curve import plot_curves

            plot_curves({config.out.name: config.out / "metrics.jsonl"}, config.out / "curve.png")
        return save_checkpoint(config.out, *saved, self.optimizer, self.progress, self.world)
