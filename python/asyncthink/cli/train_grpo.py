"""The command ``asyncthink train grpo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from asyncthink.train.options import (
    Checkpointing,
    Device,
    Export,
    Lora,
    LoraAlpha,
    LoraTargets,
    MaxSkipped,
    Plot,
    Resume,
    Tensorboard,
    Weights,
)


def grpo(
    out: Annotated[Path, typer.Option(help="Folder of the run: checkpoints, metrics.jsonl, config.json.")],
    model: Annotated[str, typer.Option(help="Folder or hub id to start from.")],
    task: Annotated[str, typer.Option(help="One or several of the tasks, with commas between.")] = "countdown",
    mode: Annotated[str, typer.Option(help="asyncthink, or a baseline: sequential, parallel.")] = "asyncthink",
    pool: Annotated[int, typer.Option(help="The organizer and at most POOL - 1 live workers.")] = 4,
    context: Annotated[str, typer.Option(help="What a worker sees: shared or isolated.")] = "shared",
    join: Annotated[str, typer.Option(help="How a return enters the organizer: exact, append or link.")] = "exact",
    budget: Annotated[int, typer.Option(help="Tokens that one agent may draw.")] = 1024,
    temperature: Annotated[float, typer.Option(help="Of the rollouts.")] = 1.0,
    prompts: Annotated[int, typer.Option(help="Questions a step.")] = 8,
    group: Annotated[int, typer.Option(help="Episodes of each question.")] = 8,
    steps: Annotated[int, typer.Option(help="Rollouts in all.")] = 100,
    minibatches: Annotated[int, typer.Option(help="Optimizer steps on one rollout.")] = 1,
    length: Annotated[int, typer.Option(help="Tokens of a packed batch: bounds memory, changes nothing else.")] = 8192,
    cached: Annotated[int, typer.Option(help="Tokens of the sampler's K/V cache.")] = 65536,
    learning_rate: Annotated[float, typer.Option(help="Between warm-up and decay.")] = 1e-4,
    warmup: Annotated[int, typer.Option(help="Steps of the warm-up.")] = 5,
    decay: Annotated[float, typer.Option(help="Share of the steps in which the rate falls to zero.")] = 0.0,
    format_error: Annotated[float, typer.Option(help="Reward of an episode that broke the protocol.")] = -0.5,
    eta_weight: Annotated[float, typer.Option(help="Lambda, the weight of the concurrency reward.")] = 0.2,
    eta_threshold: Annotated[float, typer.Option(help="Tau: a ratio above it earns no more.")] = 0.75,
    eta_reading: Annotated[
        str, typer.Option(help="agents (all that decode, over c) or workers (over c - 1).")
    ] = "agents",
    aggregate: Annotated[str | None, typer.Option(help="How parallel answers become one: union or vote.")] = None,
    clip_low: Annotated[float, typer.Option(help="A ratio below 1 - CLIP_LOW earns no more.")] = 0.2,
    clip_high: Annotated[float, typer.Option(help="A ratio above 1 + CLIP_HIGH earns no more.")] = 0.28,
    kl: Annotated[float, typer.Option(help="Weight of the KL term to the starting weights; 0: no reference.")] = 0.0,
    normaliser: Annotated[
        str, typer.Option(help="token, episode or constant: the loss of a step is a mean over.")
    ] = "token",
    constant: Annotated[float | None, typer.Option(help="With normaliser constant; BUDGET if absent.")] = None,
    std: Annotated[bool, typer.Option(help="Divide advantages by the group's standard deviation.")] = True,
    seed: Annotated[int, typer.Option(help="Of the questions and the draws.")] = 0,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    weights: Weights = "float32",
    lora: Lora = 0,
    lora_alpha: LoraAlpha = None,
    lora_targets: LoraTargets = "all-linear",
    checkpointing: Checkpointing = False,
    device: Device = "auto",
    max_skipped: MaxSkipped = 5,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 10,
    export: Export = None,
    plot: Plot = False,
    tensorboard: Tensorboard = False,
    resume: Resume = False,
) -> None:
    """Learn to organize (or to solve alone) by group-relative policy optimisation."""
    from asyncthink.tasks.rewards import RewardRule
    from asyncthink.train.grpo_loss import Objective
    from asyncthink.train.grpo_config import GRPOConfig
    from asyncthink.train.grpo import train_grpo
    from asyncthink.train.loading import ModelOptions

    config = GRPOConfig(
        out=out,
        model=ModelOptions(
            model=model,
            seed=seed,
            bfloat16=False,
            weights=weights,
            lora=lora,
            lora_alpha=lora_alpha,
            lora_targets=lora_targets,
            checkpointing=checkpointing,
            device=device,
        ),
        task=task,
        mode=mode,
        pool=pool,
        context=context,
        join=join,
        budget=budget,
        temperature=temperature,
        prompts=prompts,
        group=group,
        steps=steps,
        minibatches=minibatches,
        length=length,
        cached=cached,
        learning_rate=learning_rate,
        warmup=warmup,
        decay=decay,
        seed=seed,
        normalise=std,
        rule=RewardRule(format_error, eta_weight, eta_threshold, eta_reading, aggregate),  # type: ignore[arg-type]
        objective=Objective(clip_low, clip_high, kl, normaliser, constant or float(budget)),  # type: ignore[arg-type]
        save_every=save_every,
        max_skipped=max_skipped,
        threads=threads,
        resume=resume,
        export=export,
        plot=plot,
        tensorboard=tensorboard,
    )
    print(train_grpo(config))
