"""The command ``asyncthink train grpo``."""

from __future__ import annotations

from typing import Annotated

import typer

from asyncthink.cli.options import Depth, Fallback, NumStates
from asyncthink.cli.ray_options import RayActors, RayAddress, RayBatch, RayCpus, RayGpus
from asyncthink.cli.train_options import (
    Bfloat16Backward,
    Checkpointing,
    Decay,
    Device,
    Export,
    LearningRate,
    LogTo,
    Lora,
    LoraAlpha,
    LoraTargets,
    MaxSkipped,
    Out,
    Plot,
    Pool,
    Resume,
    SaveEvery,
    Threads,
    Warmup,
    Weights,
)


def grpo(
    out: Out,
    model: Annotated[str, typer.Option(help="Folder or hub id of the initial model.")],
    task: Annotated[
        str, typer.Option(help="Task, or several separated by commas: a name, KIND:PATH, or MODULE:NAME of your own.")
    ] = "countdown",
    mode: Annotated[str, typer.Option(help="asyncthink, or a baseline: sequential, parallel.")] = "asyncthink",
    pool: Pool = 4,
    depth: Depth = 1,
    context: Annotated[str, typer.Option(help="What a worker sees: shared or isolated.")] = "shared",
    join: Annotated[str, typer.Option(help="How a return enters the organizer: exact, append or link.")] = "exact",
    guide: Annotated[str, typer.Option(help="What agents may write while sampled: off, legal or plan.")] = "off",
    max_tokens: Annotated[int, typer.Option(help="Tokens that one agent may draw.")] = 1024,
    temperature: Annotated[float, typer.Option(help="Sampling temperature of the rollouts.")] = 1.0,
    questions: Annotated[int, typer.Option(help="Groups per step that are trained on: those that differ.")] = 8,
    group_size: Annotated[int, typer.Option(help="Episodes per question.")] = 8,
    drawn: Annotated[int | None, typer.Option(help="Groups that a step draws at first. Default: QUESTIONS.")] = None,
    rounds: Annotated[
        int, typer.Option(help="Most rounds of drawing a step, each for the groups that are missing.")
    ] = 3,
    steps: Annotated[int, typer.Option(help="Rollouts in total.")] = 100,
    minibatches: Annotated[int, typer.Option(help="Optimizer steps per rollout.")] = 1,
    batch_tokens: Annotated[
        int, typer.Option(help="Tokens of a packed batch. Bounds memory, does not change the result.")
    ] = 8192,
    cache_tokens: Annotated[int, typer.Option(help="Capacity of the sampler's K/V cache, in tokens.")] = 65536,
    num_states: NumStates = None,
    fallback: Fallback = None,
    learning_rate: LearningRate = 1e-4,
    warmup: Warmup = 5,
    decay: Decay = 0.0,
    reward: Annotated[
        str | None,
        typer.Option(help="A reward by name or MODULE:NAME, instead of the one of the next options."),
    ] = None,
    format_error: Annotated[float, typer.Option(help="Reward of an episode that broke the protocol.")] = -0.5,
    eta_weight: Annotated[float, typer.Option(help="Lambda, the weight of the concurrency reward.")] = 0.2,
    eta_threshold: Annotated[
        float, typer.Option(help="Tau: a concurrency ratio above it is rewarded no more than tau.")
    ] = 0.75,
    eta_reading: Annotated[
        str, typer.Option(help="Concurrency ratio of: agents (all that decode, over c) or workers (over c - 1).")
    ] = "agents",
    complete: Annotated[
        float, typer.Option(help="Part of the accuracy that is paid for a complete answer alone.")
    ] = 0.0,
    path_weight: Annotated[
        float, typer.Option(help="Weight of the reward for a short critical path of a complete answer.")
    ] = 0.0,
    path_reference: Annotated[
        int | None, typer.Option(help="Critical path from which on nothing is paid. Default: MAX_TOKENS.")
    ] = None,
    aggregate: Annotated[str | None, typer.Option(help="How parallel answers become one: union or vote.")] = None,
    clip_low: Annotated[float, typer.Option(help="Clip the probability ratio below 1 - CLIP_LOW.")] = 0.2,
    clip_high: Annotated[float, typer.Option(help="Clip the probability ratio above 1 + CLIP_HIGH.")] = 0.28,
    kl: Annotated[
        float, typer.Option(help="Weight of the KL term to the initial weights; 0 loads no reference model.")
    ] = 0.0,
    normaliser: Annotated[
        str, typer.Option(help="How the loss of a step is averaged: over token, over episode, or by a constant.")
    ] = "token",
    constant: Annotated[
        float | None, typer.Option(help="The constant of --normaliser constant. Default: MAX_TOKENS.")
    ] = None,
    entropy: Annotated[float, typer.Option(help="Weight of the entropy bonus.")] = 0.0,
    scale: Annotated[
        str, typer.Option(help="Divide advantages by: none, or the group's standard deviation (group).")
    ] = "none",
    credit: Annotated[
        str, typer.Option(help="Advantage of a trace: its episode's, or, parallel, what it adds (marginal).")
    ] = "episode",
    validate_every: Annotated[
        int, typer.Option(help="Steps between validations, which keep the best weights in OUT/best-N; 0: none.")
    ] = 0,
    validate_puzzles: Annotated[int, typer.Option(help="Held-out puzzles of a validation.")] = 200,
    validate_temperature: Annotated[
        float | None, typer.Option(help="Default: 0, but TEMPERATURE in mode parallel.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the questions and the draws.")] = 0,
    threads: Threads = 1,
    bfloat16_backward: Bfloat16Backward = False,
    weights: Weights = "float32",
    lora: Lora = 0,
    lora_alpha: LoraAlpha = None,
    lora_targets: LoraTargets = "all-linear",
    checkpointing: Checkpointing = False,
    device: Device = "auto",
    max_skipped: MaxSkipped = 5,
    save_every: SaveEvery = 10,
    export: Export = None,
    plot: Plot = False,
    log_to: LogTo = None,
    resume: Resume = False,
    ray_actors: RayActors = 0,
    ray_cpus: RayCpus = 1,
    ray_gpus: RayGpus = None,
    ray_batch: RayBatch = 16,
    ray_address: RayAddress = None,
) -> None:
    """Learn to organize (or to solve alone) by group relative policy optimization (GRPO)."""
    from asyncthink.tasks.rewards import RewardRule
    from asyncthink.tasks.rewards import reward as find_reward
    from asyncthink.train.grpo import train_grpo
    from asyncthink.train.grpo_config import GRPOConfig
    from asyncthink.train.grpo_loss import Objective
    from asyncthink.train.loading import ModelOptions

    rule = RewardRule(
        format_error,
        eta_weight,
        eta_threshold,
        eta_reading,  # type: ignore[arg-type]
        aggregate,
        complete,
        path_weight,
        max_tokens if path_reference is None else path_reference,
    )
    config = GRPOConfig(
        out=out,
        model=ModelOptions(
            model=model,
            seed=seed,
            bfloat16=False,
            bfloat16_backward=bfloat16_backward,
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
        depth=depth,
        context=context,
        join=join,
        guide=guide,
        max_tokens=max_tokens,
        temperature=temperature,
        questions=questions,
        group_size=group_size,
        drawn=drawn,
        rounds=rounds,
        steps=steps,
        minibatches=minibatches,
        batch_tokens=batch_tokens,
        cache_tokens=cache_tokens,
        num_states=num_states,
        fallback=fallback,
        learning_rate=learning_rate,
        warmup=warmup,
        decay=decay,
        seed=seed,
        scale=scale,  # type: ignore[arg-type]
        credit=credit,  # type: ignore[arg-type]
        rule=rule if reward is None else find_reward(reward),
        objective=Objective(clip_low, clip_high, kl, entropy, normaliser, constant or float(max_tokens)),  # type: ignore[arg-type]
        validate_every=validate_every,
        validate_puzzles=validate_puzzles,
        validate_temperature=validate_temperature,
        save_every=save_every,
        max_skipped=max_skipped,
        threads=threads,
        resume=resume,
        export=export,
        plot=plot,
        log_to=tuple(log_to or ()),
    )
    if not ray_actors:
        print(train_grpo(config))
        return
    from asyncthink.integrations.ray_rollouts import RayRollouts

    with RayRollouts(ray_actors, cpus=ray_cpus, gpus=ray_gpus, batch=ray_batch, address=ray_address) as rollouts:
        print(train_grpo(config, rollouts))
