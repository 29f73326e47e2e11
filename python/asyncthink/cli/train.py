"""The commands under ``asyncthink train``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from asyncthink.cli.options import Depth, NumStates
from asyncthink.cli.renamed import Command
from asyncthink.cli.train_grpo import grpo
from asyncthink.cli.train_options import (
    BatchTokens,
    Bfloat16,
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
from asyncthink.cli.train_synthesize import synthesize

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.command(cls=Command)(grpo)
app.command(cls=Command)(synthesize)


@app.callback()
def train() -> None:
    """Train a model to organize its own workers."""


@app.command(cls=Command)
def sft(
    out: Out,
    task: Annotated[
        str,
        typer.Option(
            help="Task of the demonstrations, or several separated by commas: a name, KIND:PATH, traces:PATH (written "
            "traces), solo:TASK (by one agent alone) or MODULE:NAME of your own."
        ),
    ] = "countdown",
    model: Annotated[
        str | None, typer.Option(help="Folder or hub id of the initial model. Default: random weights.")
    ] = None,
    shape: Annotated[
        str, typer.Option(help="Of random weights: LAYERS,HIDDEN,HEADS,KV_HEADS,HEAD_DIM,INTERMEDIATE.")
    ] = "4,128,4,2,32,384",
    steps: Annotated[int, typer.Option(help="Optimizer steps in total.")] = 13500,
    batches: Annotated[int, typer.Option(help="Packed batches per step, shared by the processes of torchrun.")] = 1,
    batch_tokens: BatchTokens = 1200,
    learning_rate: LearningRate = 2e-3,
    warmup: Warmup = 200,
    decay: Decay = 0.3,
    solo: Annotated[float, typer.Option(help="Share of demonstrations by one agent alone.")] = 0.3,
    part: Annotated[float, typer.Option(help="Share by one agent whose question names the parts to search.")] = 0.0,
    shared: Annotated[float, typer.Option(help="Share of organizers whose workers see the organizer's text.")] = 0.4,
    isolated: Annotated[float, typer.Option(help="Share of organizers whose workers do not see it.")] = 0.3,
    append: Annotated[float, typer.Option(help="Share of organized episodes whose returns enter by append.")] = 0.0,
    workers: Annotated[
        float, typer.Option(help="Share of the other organized episodes that also train on the workers' traces.")
    ] = 1.0,
    pool: Pool = 4,
    depth: Depth = 1,
    max_tokens: Annotated[
        int | None, typer.Option(help="Leave out demonstrations in which an agent writes more tokens.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the weights and the puzzles.")] = 0,
    threads: Threads = 1,
    bfloat16: Bfloat16 = None,
    bfloat16_backward: Bfloat16Backward = False,
    weights: Weights = "float32",
    lora: Lora = 0,
    lora_alpha: LoraAlpha = None,
    lora_targets: LoraTargets = "all-linear",
    checkpointing: Checkpointing = False,
    tag_tokens: Annotated[
        bool, typer.Option("--tag-tokens", help="Add the protocol's tags as tokens to the tokenizer and the model.")
    ] = False,
    device: Device = "auto",
    max_skipped: MaxSkipped = 5,
    evaluate_every: Annotated[int, typer.Option(help="Steps between evaluations on held-out puzzles.")] = 500,
    save_every: SaveEvery = 250,
    export: Export = None,
    plot: Plot = False,
    log_to: LogTo = None,
    resume: Resume = False,
) -> None:
    """Learn the protocol from demonstrations with random topologies (cold start)."""
    from asyncthink.train.demonstrations import Mixture
    from asyncthink.train.loading import ModelOptions, Shape
    from asyncthink.train.sft import SFTConfig, train_sft

    config = SFTConfig(
        out=out,
        task=task,
        model=ModelOptions(
            model=model,
            shape=Shape.parse(shape),
            seed=seed,
            bfloat16="auto" if bfloat16 is None else bfloat16,
            bfloat16_backward=bfloat16_backward,
            weights=weights,
            lora=lora,
            lora_alpha=lora_alpha,
            lora_targets=lora_targets,
            checkpointing=checkpointing,
            tag_tokens=tag_tokens,
            device=device,
        ),
        mixture=Mixture(solo, part, shared, isolated, append, workers),
        pool=pool,
        depth=depth,
        max_tokens=max_tokens,
        seed=seed,
        steps=steps,
        batches=batches,
        batch_tokens=batch_tokens,
        learning_rate=learning_rate,
        warmup=warmup,
        decay=decay,
        max_skipped=max_skipped,
        threads=threads,
        evaluate_every=evaluate_every,
        save_every=save_every,
        export=export,
        plot=plot,
        log_to=tuple(log_to or ()),
        resume=resume,
    )
    print(train_sft(config))


@app.command(cls=Command)
def memory(
    model: Annotated[str, typer.Option(help="Folder or hub id; only its config.json is read.")],
    batch_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a packed batch.")] = 8192,
    cache_tokens: Annotated[int, typer.Option(min=0, help="Capacity of the sampler's K/V cache, in tokens.")] = 65_536,
    num_states: NumStates = None,
    trace_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens of a trace with its prefix, for a model that trains one row a trace.")
    ] = 1024,
    weights: Weights = "float32",
    lora: Lora = 0,
    lora_targets: LoraTargets = "all-linear",
    checkpointing: Checkpointing = False,
    processes: Annotated[int, typer.Option(min=1, help="Processes that divide the model; it is shown for one.")] = 1,
) -> None:
    """Estimate the memory of a training step from the model's configuration, without loading the model."""
    from asyncthink.model.files import load_config
    from asyncthink.train.loading import ModelOptions
    from asyncthink.train.memory import estimate

    options = ModelOptions(model, weights=weights, lora=lora, lora_targets=lora_targets, checkpointing=checkpointing)
    try:
        config = load_config(model)
    except ValueError as error:
        raise ValueError(f"model: {error}") from error
    more: dict[str, Any] = {"num_states": num_states, "trace_tokens": trace_tokens}
    for name, size in estimate(config, options, batch_tokens, cache_tokens, processes, **more).items():
        print(f"{name:<12}{size / 2**30:8.2f} GiB")
