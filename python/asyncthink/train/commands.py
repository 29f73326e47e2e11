"""The commands under ``asyncthink train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def train() -> None:
    """Train a model to organize its own workers."""


@app.command()
def sft(
    out: Annotated[Path, typer.Option(help="Folder of the run: checkpoints, metrics.jsonl, curve.png.")],
    task: Annotated[str, typer.Option(help="What the traces are about.")] = "countdown",
    model: Annotated[str | None, typer.Option(help="Folder or hub id to start from; random weights if absent.")] = None,
    steps: Annotated[int, typer.Option(help="Batches in all.")] = 13500,
    length: Annotated[int, typer.Option(help="Tokens of a batch; its last episode may exceed them.")] = 1200,
    learning_rate: Annotated[float, typer.Option(help="Between warm-up and decay.")] = 2e-3,
    decay: Annotated[float, typer.Option(help="Share of the steps in which the rate falls to zero.")] = 0.3,
    append: Annotated[float, typer.Option(help="Share of organized episodes whose returns enter by append.")] = 0.0,
    pool: Annotated[int, typer.Option(help="The organizer and at most POOL - 1 live workers.")] = 4,
    seed: Annotated[int, typer.Option(help="Of the weights and of the puzzles.")] = 0,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
    bfloat16: Annotated[bool, typer.Option(help="Multiply matrices in bfloat16.")] = True,
    evaluate_every: Annotated[int, typer.Option(help="Steps between looks at held-out puzzles.")] = 500,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = 250,
    export: Annotated[Path | None, typer.Option(help="Folder that always holds the newest model.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in OUT.")] = False,
) -> None:
    """Learn the protocol from written-out demonstrations with random topologies (cold start)."""
    from asyncthink.train.sft import SFTConfig, train_sft
    from asyncthink.train.traces import Mixture

    config = SFTConfig(
        out=out,
        task=task,
        model=model,
        steps=steps,
        length=length,
        learning_rate=learning_rate,
        decay=decay,
        mixture=Mixture(append=append),
        pool=pool,
        seed=seed,
        threads=threads,
        bfloat16=bfloat16,
        evaluate_every=evaluate_every,
        save_every=save_every,
        export=export,
        resume=resume,
    )
    print(train_sft(config))
