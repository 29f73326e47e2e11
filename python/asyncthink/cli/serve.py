"""The command ``asyncthink serve``."""

from __future__ import annotations

import contextlib
import functools
import os
from concurrent.futures import Future
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from asyncthink.cli.options import (
    Context,
    Device,
    Dtype,
    Fallback,
    JoinMode,
    NumStates,
    Pool,
    Revision,
    Weights,
    loading,
)
from asyncthink.episode.options import default_forms

API_KEY = "ASYNCTHINK_API_KEY"


def serve(
    model: Annotated[str | None, typer.Option(help="Folder or hub id. Default: the shipped model.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; others reach only what you open.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.")] = 8000,
    api_key: Annotated[str | None, typer.Option(help=f"What clients must send. Default: ${API_KEY}.")] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="A name under which clients reach the server; needed without a key. May be repeated."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="The model's name for clients. Default: that of its folder.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse requests with unknown fields.")] = False,
    mode: Annotated[str, typer.Option(help="Where a request does not say: asyncthink, sequential or parallel.")] = (
        "asyncthink"
    ),
    guide: Annotated[
        str | None, typer.Option(help="Where a request does not say: off, legal or plan. Default: as `asyncthink run`.")
    ] = None,
    join: JoinMode = "exact",
    context: Context = "shared",
    pool: Pool = 4,
    num_pages: Annotated[int | None, typer.Option(help="Pages of the K/V cache.")] = None,
    page_size: Annotated[int | None, typer.Option(help="Tokens of a page.")] = None,
    num_states: NumStates = None,
    max_episodes: Annotated[int, typer.Option(help="Episodes that run at once; others wait.")] = 64,
    max_rows: Annotated[int, typer.Option(help="New tokens of one step.")] = 1024,
    max_waiting: Annotated[int, typer.Option(help="Requests that may wait; more get 429.")] = 256,
    max_tokens: Annotated[int, typer.Option(help="Tokens that one agent may draw.")] = 32768,
    max_prompt: Annotated[int | None, typer.Option(help="Tokens of a prompt. Default: what the cache holds.")] = None,
    max_body: Annotated[int, typer.Option(help="Bytes of a request.")] = 4 * 1024 * 1024,
    max_choices: Annotated[int, typer.Option(help="Answers to one request (n).")] = 16,
    max_pool: Annotated[int, typer.Option(help="Pool that a request may ask for.")] = 16,
    timeout: Annotated[float, typer.Option(help="Seconds that a request may take.")] = 600.0,
    drain: Annotated[float, typer.Option(help="Seconds for what is running when the server is told to end.")] = 30.0,
    allow_weight_updates: Annotated[
        bool, typer.Option("--allow-weight-updates", help="Let clients pause the model and change its weights.")
    ] = False,
    log_level: Annotated[str, typer.Option(help="warning, or info for a line a request. No text is logged.")] = (
        "warning"
    ),
    warm_up: Annotated[
        int | None,
        typer.Option(
            help="Record decode steps of 1 to N agents before the server is ready; 0: with the first requests. "
            "Default: 8, or the pool if that is larger."
        ),
    ] = None,
    compile: Annotated[bool, typer.Option("--compile", help="Run whole steps through torch.compile.")] = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    weights: Weights = None,
    fallback: Fallback = None,
    revision: Revision = None,
) -> None:
    """Serve a model over HTTP, as OpenAI's API has it, with a page to watch it organize.

    Code that comes with a model is never run (trust_remote_code is off).
    """
    try:
        from asyncthink.serve.hosts import is_own
        from asyncthink.serve.settings import Limits, Settings
    except ImportError as error:
        raise ImportError(f'serve: {error}; install "asyncthink-kernels[serve]"') from None
    from asyncthink import checkpoint_path

    if log_level not in ("warning", "info"):
        raise ValueError(f"log_level: expected warning or info, got {log_level!r}")
    if weights is not None and allow_weight_updates:
        raise ValueError(f"weights: expected none beside --allow-weight-updates, got {weights!r}: they are not kept")
    limits = Limits(
        body_bytes=max_body,
        prompt_tokens=max_prompt,
        max_tokens=max_tokens,
        choices=max_choices,
        pool=max_pool,
        waiting=max_waiting,
        seconds=timeout,
    )
    source: str | Path = model or checkpoint_path()
    key = api_key if api_key is not None else os.environ.get(API_KEY) or None
    names = tuple(each.lower() for each in [*(allow_host or ()), *([] if is_own(host, ()) else [host])])
    settings = Settings(name or Path(source).name, key, strict, allow_weight_updates, limits, names)
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(loading(quiet=False))
        from asyncthink.engine.async_engine import AsyncEngine
        from asyncthink.engine.saved_prompts import saved_prompts
        from asyncthink.model.warm_up import MAX_AGENTS
        from asyncthink.serve.server import listen
        from asyncthink.serve.server import serve as run

        sock = listen(host, port)  # a port that is taken is told of before the model is loaded
        agents: dict[str, Any] = {"mode": mode, "pool": pool, "context": context, "join": join}
        agents |= default_forms(saved_prompts(source, revision) is not None, mode, guide=guide)
        sizes: dict[str, Any] = {"num_pages": num_pages, "page_size": page_size, "num_states": num_states}
        sizes |= {"max_rows": max_rows, "max_episodes": max_episodes, "compile": compile or None}
        placed: dict[str, Any] = {"device": device, "dtype": dtype, "weights": weights, "revision": revision}
        placed |= {"fallback": fallback}
        ahead = min(max(8, pool), MAX_AGENTS) if warm_up is None else warm_up
        limited: dict[str, Any] = {"max_waiting": max_waiting, "warm_up": ahead, "progress": progress}
        engine = AsyncEngine.load(source, **limited, **agents, **sizes, **placed)
        address = sock.getsockname()
        shown = f"[{address[0]}]" if ":" in address[0] else address[0]
        line = f"{settings.model} at http://{shown}:{address[1]}/  (API: /v1, stop: Ctrl-C)"
        engine.warmed.add_done_callback(functools.partial(_say_ready, stack.pop_all(), line))
    run(engine, settings, sock, drain_seconds=drain, log_level=log_level)


def _say_ready(stack: contextlib.ExitStack, line: str, warmed: Future[str]) -> None:
    """End the progress line, and say what was recorded and where the server is, unless it has ended meanwhile."""
    from asyncthink.engine.async_engine import EngineStoppedError

    stack.close()
    error = warmed.exception()
    if isinstance(error, EngineStoppedError):
        return
    for said in (warmed.result() if error is None else f"steps cannot be recorded: {error!r}", line):
        Console(stderr=True).print(f"asyncthink: {said}", highlight=False, markup=False, soft_wrap=True)
