"""Options that several commands share, and the progress line while a model is loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

Device = Annotated[str, typer.Option(help="auto (the GPU if there is one), cpu, cuda or cuda:N.")]
Dtype = Annotated[
    str, typer.Option(help="auto (as stored, or float32 if that is faster on this CPU), float32, bfloat16, float16.")
]
Weights = Annotated[
    str | None,
    typer.Option(help="int8 or int4: on a CPU, hold linear layers in 8 or 4 bits. Default: as stored."),
]
NumStates = Annotated[
    int | None,
    typer.Option(min=1, help="Recurrent states of the cache, one an agent. Default: by the free memory, at most 256."),
]
Fallback = Annotated[
    bool | None,
    typer.Option(
        "--fallback/--no-fallback",
        help="Run the model on caches of its own, one a branch: exact and slower; --no-fallback refuses a model that "
        "needs that. Default: where needed, with a warning.",
    ),
]
Pool = Annotated[int, typer.Option(help="Agents alive at the same time: the organizer and up to POOL - 1 workers.")]
Context = Annotated[str, typer.Option(help="What a worker sees: shared (the organizer's tokens) or isolated.")]
JoinMode = Annotated[str, typer.Option("--join", help="How a return enters the organizer: exact, append or link.")]
Depth = Annotated[int, typer.Option(help="Levels of workers: 1, or more to let workers fork workers of their own.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Save = Annotated[Path | None, typer.Option(help="Also write the episode as JSON, for `asyncthink view`.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a model on the hub.")]


@contextmanager
def loading(quiet: bool, *, here: bool = True) -> Iterator[Callable[[str], None]]:
    """Yields a function that reports progress on stderr: as a spinner on a terminal, otherwise as lines.

    The messages and progress bars of transformers and huggingface_hub are disabled; they would mix with ours. Neither
    is imported where the model is not loaded ``here``.
    """
    console = Console(stderr=True, quiet=quiet)

    def say(phrase: str) -> None:
        console.print(f"asyncthink: {phrase}", highlight=False, markup=False, soft_wrap=True)

    if console.is_terminal and not console.is_dumb_terminal:
        with console.status("loading the model") as status:
            if here:
                _silence()
            yield status.update
    else:
        if here:
            _silence()
        yield say


def _silence() -> None:
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    hub_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
