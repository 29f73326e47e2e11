"""The commands under ``asyncthink train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from asyncthink.cli.train_grpo import grpo
from asyncthink.train.options import (
    Bfloat16,
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

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.command()(grpo)


@app.callback()
def train() -> None:
    """Train a model to organize its own workers."""


@app.command()
def sft(
    out: Annotated[Path, typer.Option(help="Folder of the run: checkpoints, metrics.jsonl, config.json.")],
    task: Annotated[str, typer.Option(help="What the traces are about.")] = "countdown",
    model: Annotated[str | None, typer.Option(help="Folder or hub id to start from; random weights if absent.")] = None,
    steps: Annotated[int, typer.Option(help="Optimizer steps in all.")] = 13500,
    batches: Annotated[int, typer.Option(help="Packed batches of a step, shared by the processes of torchrun.")] = 1,
    length: Annotated[int, typer.Option(help="Tokens of a batch; its last episode may exceed them.")] = 1200,
    learning_rate: Annotated[float, typer.Option(help="Between warm-up and decay.")] = 2e-3,
    decay: Annotated[float, typer.Option(help="Share of the steps in which the rate falls to zero.")] = 0.3,
    solo: Annotated[float, typer.Option(help="Share of demonstrations by one agent alone.")] = 0.3,
    part: Annotated[float, typer.Option(help="Share by one agent whose question names the parts to search.")] = 0.0,
    shared: Annotated[float, typer.Option(help="Share of organizers whose workers see their text.")] = 0.4,
    isolated: Annotated[float, typer.Option(help="Share of organizers whose workers do not.")] = 0.3,
    append: Annotated[float, typer.Option(help="Share of organized episodes whose returns enter by append.")] = 0.0,
    workers: Annotated[float, typer.Option(help="Share of the others in which workers' traces are learned too.")] = 1.0,
    pool: Annotated[int, typer.Option(help="The organizer and at most POOL - 1 live workers.")] = 4,
    budget: Annotated[
        int | None, typer.Option(help="Longest trace that is learned, in tokens the agent wrote.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the weights and of the puzzles.")] = 0,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    bfloat16: Bfloat16 = None,
    weights: Weights = "float32",
    lora: Lora = 0,
    lora_alpha: LoraAlpha = None,
    lora_targets: LoraTargets = "all-linear",
    checkpointing: Checkpointing = False,
    device: Device = "auto",
    max_skipped: MaxSkipped = 5,
    evaluate_every: Annotated[int, typer.Option(help="Steps between looks at held-out puzzles.")] = 500,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 250,
    export: Export = None,
    plot: Plot = False,
    tensorboard: Tensorboard = False,
    resume: Resume = False,
) -> None:
    """Learn the protocol from written-out demonstrations with random topologies (cold start)."""
    from asyncthink.train.loading import ModelOptions
    from asyncthink.train.sft import SFTConfig, train_sft
    from asyncthink.train.demonstrations import Mixture

    config = SFTConfig(
        out=out,
        task=task,
        model=ModelOptions(
            model=model,
            seed=seed,
            bfloat16="auto" if bfloat16 is None else bfloat16,
            weights=weights,
            lora=lora,
            lora_alpha=lora_alpha,
            lora_targets=lora_targets,
            checkpointing=checkpointing,
            device=device,
        ),
        mixture=Mixture(solo, part, shared, isolated, append, workers),
        pool=pool,
        budget=budget,
        seed=seed,
        steps=steps,
        batches=batches,
        length=length,
        learning_rate=learning_rate,
        decay=decay,
        max_skipped=max_skipped,
        threads=threads,
        evaluate_every=evaluate_every,
        save_every=save_every,
        export=export,
        plot=plot,
        tensorboard=tensorboard,
        resume=resume,
    )
    print(train_sft(config))


@app.command()
def memory(
    model: Annotated[str, typer.Option(help="Folder or hub id; only its config.json is read.")],
    length: Annotated[int, typer.Option(min=1, help="Tokens of a packed batch.")] = 8192,
    cached: Annotated[int, typer.Option(min=0, help="Tokens in the sampler's cache (GRPO).")] = 65_536,
    weights: Weights = "float32",
    lora: Lora = 0,
    lora_targets: LoraTargets = "all-linear",
    checkpointing: Checkpointing = False,
) -> None:
    """Estimate the memory of a training step from the model's configuration, without loading it."""
    from asyncthink.model.files import load_config
    from asyncthink.train.loading import ModelOptions
    from asyncthink.train.memory import estimate

    options = ModelOptions(model, weights=weights, lora=lora, lora_targets=lora_targets, checkpointing=checkpointing)
    try:
        config = load_config(model)
    except ValueError as error:
        raise ValueError(f"model: {error}") from error
    for name, size in estimate(config, options, length, cached).items():
        print(f"{name:<12}{size / 2**30:8.2f} GiB")
