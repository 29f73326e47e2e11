"""Options of the commands that can draw episodes on Ray actors."""

from __future__ import annotations

from typing import Annotated

import typer

RayActors = Annotated[
    int, typer.Option(min=0, help="Draw on this many Ray actors, a decoder each; 0: in this process.")
]
RayCpus = Annotated[int, typer.Option(min=1, help="CPUs, and threads, of a Ray actor.")]
RayGpus = Annotated[
    float | None,
    typer.Option(min=0, help="GPUs of a Ray actor. Default: 1 with --device auto or cuda, if there are any."),
]
RayBatch = Annotated[int, typer.Option(min=1, help="Episodes that a Ray actor draws together.")]
RayAddress = Annotated[
    str | None,
    typer.Option(help="The Ray cluster to join. Default: RAY_ADDRESS, one on this machine, or a new one here."),
]
