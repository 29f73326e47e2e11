"""Supervised fine-tuning on demonstrations (cold start), from random weights or any transformers decoder.

The data of a step is a pure function of the seed and its number in the stream (:mod:`.stream`) and nothing in the loop
is random, so a resumed run repeats the uninterrupted one exactly (same thread count, same machine).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from asyncthink.model.files import device_for
from asyncthink.tasks import Task, task_names
from asyncthink.train.checkpoint import save_checkpoint, save_model
from asyncthink.train.demonstrations import DemonstrationPacker, Mixture
from asyncthink.train.distributed import World
from asyncthink.train.evaluate import evaluate, held_out_episodes
from asyncthink.train.idle import idle_pass
from asyncthink.train.loading import Loaded, ModelOptions, load, optimizer
from asyncthink.train.loggers import check_loggers
from asyncthink.train.logprobs import token_logprobs
from asyncthink.train.packed_attention import use_packed_attention
from asyncthink.train.packing import IGNORED
from asyncthink.train.precision import settle
from asyncthink.train.progress import Reporter
from asyncthink.train.runs import begin_run, find_run
from asyncthink.train.schedule import check_rates, check_schedule, learning_rate
from asyncthink.train.sources import demonstrated
from asyncthink.train.state import Progress, load_state
from asyncthink.train.steps import Steps
from asyncthink.train.stream import Stream


@dataclass(frozen=True, slots=True)
class SFTConfig:
    """The options of a supervised run. Raises ValueError for numbers outside their range.

    Args:
        out: folder of the run.
        task: names separated by commas, a task, or several of either (:func:`asyncthink.tasks.tasks`); ``traces:PATH``
            are written traces (:mod:`.sources`).
        pool, depth: of the organized demonstrations: agents alive at the same time, levels of workers.
        max_tokens: demonstrations in which some agent writes more tokens are left out; None leaves out none.
        steps, batches, batch_tokens: each of ``steps`` optimizer steps is on ``batches`` packed batches of about
            ``batch_tokens`` tokens. Several processes share the batches of a step; their number changes only rounding.
        learning_rate, warmup, decay: see :mod:`.schedule`.
        clip: largest gradient norm.
        max_skipped: consecutive steps without a finite loss and gradient that stop the run (:mod:`.steps`).
        export: folder that always holds the newest weights.
        plot: draw ``out/curve.png`` with every checkpoint.
        log_to: where metrics also go (:mod:`.loggers`).
        sampling: suggested sampling parameters, written into the checkpoint.
    """

    out: Path
    task: str | Task | Sequence[str | Task] = "countdown"
    model: ModelOptions = field(default_factory=ModelOptions)
    mixture: Mixture = field(default_factory=Mixture)
    pool: int = 4
    depth: int = 1
    max_tokens: int | None = None
    seed: int = 0
    steps: int = 13500
    batches: int = 1
    batch_tokens: int = 1200
    learning_rate: float = 2e-3
    warmup: int = 200
    decay: float = 0.3
    weight_decay: float = 0.05
    clip: float = 1.0
    max_skipped: int = 5
    evaluate_every: int = 500
    evaluate_episodes: int = 60
    save_every: int = 250
    log_every: int = 25
    threads: int = 1
    resume: bool = False
    export: Path | None = None
    plot: bool = False
    log_to: tuple[str, ...] = ()
    sampling: dict[str, Any] = field(default_factory=lambda: {"temperature": 0.0, "max_tokens": 700})

    def __post_init__(self) -> None:
        positive = ("steps", "batches", "batch_tokens", "evaluate_every", "evaluate_episodes", "save_every")
        for name in (*positive, "log_every", "threads", "max_skipped"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        check_loggers(self.log_to)
        check_schedule(self.warmup, self.decay)
        check_rates(self.learning_rate, self.weight_decay, self.clip)

    def rate(self, step: int) -> float:
        """Learning rate of step 0, 1, ..., ``steps`` - 1."""
        return learning_rate(step, self.steps, self.learning_rate, self.warmup, self.decay)


def train_sft(config: SFTConfig) -> Path:
    """Train, or resume a run; returns the folder of the last checkpoint.

    Writes ``out/config.json``, ``out/metrics.jsonl`` and ``out/step-N``; with several processes only rank 0 does.
    Raises ValueError for a bad configuration, for an ``out`` that already holds a run without ``resume``, for
    ``resume`` without a run, and instead of saving a weight that is not finite; RuntimeError after ``max_skipped``
    consecutive skipped steps.
    """
    newest = find_run(config.out, config.resume)
    if config.plot:
        import asyncthink.train.curve  # noqa: F401 - a missing package must not end a run at its first checkpoint
    with World.start(device_for(config.model.device)) as world:
        if config.batches < world.size:
            raise ValueError(f"batches: expected at least one for each of {world.size} processes, got {config.batches}")
        torch.set_num_threads(config.threads)
        model, dtype_reason = settle(config.model, config.out, config.resume, world)
        config = dataclasses.replace(config, model=model)
        shares = {"shared": config.mixture.shared, "isolated": config.mixture.isolated}
        loaded = load(config.model, newest, world).for_depth(
            config.depth, [name for name, share in shares.items() if share]
        )
        rows_reason = use_packed_attention(loaded.model, moves=config.mixture.append > 0)
        packer = DemonstrationPacker(
            demonstrated(config.task),
            loaded.tokenizer,
            loaded.prompts,
            config.mixture,
            config.pool,
            config.max_tokens,
            config.depth,
        )
        adam = optimizer(loaded.model, config.learning_rate, config.weight_decay)
        progress = load_state(newest, loaded.model, adam, world) if newest else Progress()
        if progress.step >= config.steps:
            raise ValueError(f"steps: expected more than the {progress.step} that are done, got {config.steps}")
        begin_run(config.out, config, world)
        steps = Steps(adam, config.clip, config.max_skipped, progress.left_out)
        stream = Stream.of("sft", config.model.model, newest)
        return _loop(config, world, loaded, packer, steps, progress, stream, (dtype_reason, rows_reason))


def _loop(
    config: SFTConfig,
    world: World,
    loaded: Loaded,
    packer: DemonstrationPacker,
    steps: Steps,
    progress: Progress,
    stream: Stream,
    reasons: tuple[str | None, ...],
) -> Path:
    episodes = held_out_episodes(packer, config.seed, config.evaluate_episodes)
    before, start = progress.seconds, time.perf_counter()
    folder = config.out
    log = config.out / "metrics.jsonl"
    with Reporter(log, config.steps, progress.step, world, config.log_to) as reporter:
        for reason in filter(None, reasons):
            reporter.say(reason)
        for step in range(progress.step, config.steps):
            metrics, tokens = update(config, world, loaded, packer, steps, step, stream.start)
            seconds = before + time.perf_counter() - start
            progress = Progress(step + 1, progress.tokens + tokens, seconds, steps.left_out)
            last = progress.step == config.steps
            if last or progress.step == 1 or progress.step % config.log_every == 0:
                shown = f"loss {metrics['loss']:.4f} norm {metrics['gradient_norm']:.2f}"
                reporter.step(progress, metrics, shown)
            if last or progress.step % config.evaluate_every == 0:  # in all processes: a pass needs all of them
                held_out = evaluate(loaded.model, episodes, loaded.tokenizer, loaded.device)
                reporter.note(progress, {"held_out": held_out}, _shown(progress.step, held_out))
            if last or progress.step % config.save_every == 0:
                folder = _save(config, world, loaded, steps.optimizer, progress, stream)
    return folder


def update(
    config: SFTConfig,
    world: World,
    loaded: Loaded,
    packer: DemonstrationPacker,
    steps: Steps,
    step: int,
    first: int = 0,
) -> tuple[dict[str, float], int]:
    """One optimizer step; returns its metrics, and the number of tokens that all processes trained on.

    The loss is the mean cross-entropy over the tokens that agents drew, in all ``batches`` of all processes. ``first``
    is the number of the run's first batch.
    """
    rate = config.rate(step)
    for group in steps.optimizer.param_groups:
        group["lr"] = rate
    sums = [0.0, 0.0, 0.0]  # loss, learned tokens, tokens
    start = first + step * config.batches
    numbers = range(start, start + config.batches)
    mine = world.mine(numbers)
    for number in mine:
        batch = packer.batch(config.seed, number, config.batch_tokens).to(loaded.device)
        with loaded.backward_products():
            with loaded.autocast():
                batch_loss = -token_logprobs(loaded.model, batch).sum()
            batch_loss.backward()  # type: ignore[no-untyped-call]
        learned = int((batch.labels != IGNORED).sum())
        sums = [
            total + new
            for total, new in zip(sums, (float(batch_loss.detach()), learned, batch.tokens.numel()), strict=True)
        ]
    for _ in range(len(mine), -(-len(numbers) // world.size)):
        idle_pass(loaded.model, loaded.device)
    loss_sum, learned_sum, tokens = world.total(sums)
    steps.divide(max(1.0, learned_sum))
    loss = loss_sum / max(1.0, learned_sum)
    norm = steps.take(loss)
    metrics = {
        "loss": round(loss, 5),
        "gradient_norm": round(norm, 4),
        "learning_rate": rate,
        "silent": steps.left_out.silent,
        "skipped": steps.left_out.skipped,
    }
    return metrics, int(tokens)


def _save(
    config: SFTConfig,
    world: World,
    loaded: Loaded,
    adam: torch.optim.Optimizer,
    progress: Progress,
    stream: Stream,
) -> Path:
    used = stream.entry(progress.step * config.batches)
    settings = {"task": task_names(config.task), "sampling": config.sampling} | used
    parts = loaded.model, loaded.tokenizer, loaded.prompts, settings
    if config.plot and world.is_main:
        from asyncthink.train.curve import plot_curves

        plot_curves({config.out.name: config.out / "metrics.jsonl"}, config.out / "curve.png")
    if config.export:
        save_model(config.export, *parts, world)
    return save_checkpoint(config.out, *parts, adam, progress, world)  # last: a run killed before it repeats all this


def _shown(step: int, held_out: dict[str, float]) -> str:
    names = sorted({name.partition("/")[0] for name in held_out})
    parts = [f"{name} {held_out[f'{name}/exact']:.1%}/{held_out[f'{name}/final']:.1%}" for name in names]
    return f"held out after {step} (exact/final): " + ", ".join(parts)
