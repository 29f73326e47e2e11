"""The option ``--server`` of commands that can draw on servers."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from asyncthink.cli.serve import API_KEY

if TYPE_CHECKING:
    from asyncthink.engine.remote.loaded import RemoteModel

Servers = Annotated[
    list[str] | None,
    typer.Option(
        "--server",
        help="Draw on this server (asyncthink serve, vLLM or SGLang; may be repeated) instead of here. --model is then "
        f"the folder or hub id whose tokenizer it has. Its key: ${API_KEY}.",
    ),
]


def connect(
    servers: Sequence[str], model: str, revision: str | None, progress: Callable[[str], None], **here: str | int | None
) -> RemoteModel:
    """The model on the servers.

    ``here`` are options of a model that is loaded here, "auto" or None where they are not given.
    Raises ValueError for such an option, and ImportError without the packages for it.
    """
    for name, value in here.items():
        if value not in ("auto", None):
            raise ValueError(f"{name}: expected none beside --server, whose model is loaded there, got {value!r}")
    try:
        from asyncthink.engine.remote.loaded import RemoteModel
    except ImportError as error:
        raise ImportError(f'--server: {error}; install "asyncthink-kernels[remote]"') from None
    progress(f"asking {', '.join(servers)}")
    return RemoteModel.connect(servers, model, revision=revision, api_key=os.environ.get(API_KEY) or None)
