"""Options that the commands under ``asyncthink train`` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Out = Annotated[Path, typer.Option(help="Folder of the run: checkpoints, metrics.jsonl, config.json.")]
Bfloat16 = Annotated[
    bool | None,
    typer.Option("--bfloat16/--no-bfloat16", help="Multiply matrices in bfloat16. Default: the faster choice here."),
]
Bfloat16Backward = Annotated[
    bool,
    typer.Option(
        "--bfloat16-backward",
        help="Multiply matrices in bfloat16 in the backward pass alone: no loss changes by a bit.",
    ),
]
BatchTokens = Annotated[int, typer.Option(help="Tokens of a packed batch; its last episode may exceed them.")]
Pool = Annotated[int, typer.Option(help="Agents alive at the same time: the organizer and up to POOL - 1 workers.")]
LearningRate = Annotated[float, typer.Option(help="Peak learning rate, between warm-up and decay.")]
Warmup = Annotated[int, typer.Option(help="Steps of the warm-up.")]
Decay = Annotated[float, typer.Option(help="Last share of the steps, over which the learning rate falls to zero.")]
Threads = Annotated[int, typer.Option(help="CPU threads.")]
SaveEvery = Annotated[int, typer.Option(help="Steps between checkpoints.")]
MaxSkipped = Annotated[
    int, typer.Option(help="Stop after this many consecutive steps without a finite loss and gradient.")
]
Weights = Annotated[str, typer.Option(help="Dtype of the stored weights: float32, or bfloat16 (for LoRA).")]
Lora = Annotated[int, typer.Option(help="Rank of LoRA adapters; 0 trains all weights.")]
LoraAlpha = Annotated[int | None, typer.Option(help="Scale of the adapters. Default: twice the rank.")]
LoraTargets = Annotated[str, typer.Option(help="all-linear, or module names separated by commas.")]
Checkpointing = Annotated[
    bool, typer.Option("--checkpointing", help="Recompute activations in the backward pass to save memory.")
]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Export = Annotated[Path | None, typer.Option(help="Folder that always holds the newest model.")]
Plot = Annotated[bool, typer.Option("--plot", help="Draw OUT/curve.png with every checkpoint.")]
LogTo = Annotated[
    list[str] | None, typer.Option(help="Also log to tensorboard (OUT/tensorboard), wandb or trackio. May be repeated.")
]
Resume = Annotated[bool, typer.Option("--resume", help="Resume from the last checkpoint in OUT.")]
