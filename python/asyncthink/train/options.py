"""Options that the commands under ``asyncthink train`` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Bfloat16 = Annotated[
    bool | None,
    typer.Option("--bfloat16/--no-bfloat16", help="Multiply matrices in bfloat16; where it is faster if absent."),
]
MaxSkipped = Annotated[
    int, typer.Option(help="Steps in a row without a finite loss and gradient that stop the training.")
]
Weights = Annotated[str, typer.Option(help="Dtype the weights are held in: float32, or bfloat16 (for LoRA).")]
Lora = Annotated[int, typer.Option(help="Rank of LoRA adapters; 0 trains all weights.")]
LoraAlpha = Annotated[int | None, typer.Option(help="Scale of the adapters; twice the rank if absent.")]
LoraTargets = Annotated[str, typer.Option(help="all-linear, or names of modules with commas between.")]
Checkpointing = Annotated[bool, typer.Option("--checkpointing", help="Compute activations again; keep fewer.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Export = Annotated[Path | None, typer.Option(help="Folder that always holds the newest model.")]
Plot = Annotated[bool, typer.Option("--plot", help="Draw OUT/curve.png with every checkpoint.")]
Tensorboard = Annotated[bool, typer.Option("--tensorboard", help="Also write events to OUT/tensorboard.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in OUT.")]
