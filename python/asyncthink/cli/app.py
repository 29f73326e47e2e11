"""The command ``asyncthink``: demo, run, chat, serve, view, eval, profile, train."""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn, ParamSpec

import typer
from rich.console import Console

from asyncthink.cli.chat import converse
from asyncthink.cli.evaluate import evaluate
from asyncthink.cli.options import (
    Context,
    Device,
    Dtype,
    Fallback,
    JoinMode,
    Json,
    NumStates,
    Pool,
    Revision,
    Save,
    Weights,
    loading,
)
from asyncthink.cli.profile import profile_step
from asyncthink.cli.renamed import Command
from asyncthink.cli.run import ask
from asyncthink.cli.serve import serve
from asyncthink.episode.records import Episode
from asyncthink.files import check_writable, write_whole
from asyncthink.view.html import timeline_html

P = ParamSpec("P")
PUZZLE = 0  # shown when no --seed is given
SHOWN = ("countdown", "countdown-10x4")  # tasks of the demo, each with a shipped model

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def guarded(command: Callable[P, None]) -> Callable[P, None]:
    """``command`` that ends with one line on stderr and an exit code for bad input, a full disk or Ctrl-C.

    Other errors are faults of the program and keep their traceback.
    """

    @functools.wraps(command)
    def guard(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
            sys.stdout.flush()
        except typer.Exit:
            raise
        except KeyboardInterrupt:
            _fail("interrupted", 130)
        except BrokenPipeError:
            _fail("", 1)
        except OSError as error:
            file = f"{error.filename}: " if error.filename else ""
            _fail(f"{file}{error.strerror or error}", 1)
        except (ValueError, RuntimeError, MemoryError, ImportError) as error:
            _fail(" ".join(str(error).split()) or type(error).__name__, 1)

    return guard


def _fail(message: str, code: int) -> NoReturn:
    if message:
        print(f"asyncthink: {message}", file=sys.stderr)
    raise typer.Exit(code)


def _print_version(requested: bool) -> None:
    if requested:
        from asyncthink import __version__

        print(f"asyncthink {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Asynchronous thinking: a language model organizes its own workers."""


@app.command()
@guarded
def demo(
    as_json: Json = False,
    task: Annotated[str, typer.Option(help=f"One of {', '.join(SHOWN)}: seven numbers, or ten.")] = SHOWN[0],
    model: Annotated[str | None, typer.Option(help="Folder or hub id. Default: the shipped model of the task.")] = None,
    seed: Annotated[int, typer.Option(help="Number of the held-out puzzle.")] = PUZZLE,
    join: JoinMode = "exact",
    context: Context = "shared",
    pool: Pool = 4,
    device: Device = "auto",
    dtype: Dtype = "auto",
    weights: Weights = None,
    num_states: NumStates = None,
    fallback: Fallback = None,
    revision: Revision = None,
    out: Annotated[Path, typer.Option(help="HTML file for the timeline.")] = Path("timeline.html"),
    save: Save = None,
) -> None:
    """Watch a small trained model organize a countdown puzzle, and compare it with one agent alone."""
    if task not in SHOWN:
        raise ValueError(f"task: expected one of {', '.join(SHOWN)}, got {task!r}")
    check_writable(out, save)
    console = Console(quiet=as_json)
    with loading(quiet=as_json) as progress:
        from asyncthink import checkpoint_path
        from asyncthink.cli.demo import play, summary
        from asyncthink.cli.demo_report import print_demo
        from asyncthink.engine.loaded import LoadedModel

        options: dict[str, Any] = {"device": device, "dtype": dtype, "weights": weights, "revision": revision}
        options |= {"num_states": num_states, "fallback": fallback}
        loaded = LoadedModel.load(model or checkpoint_path(task), **options, progress=progress)
    outcome = play(loaded, console, task=task, seed=seed, pool=pool, context=context, join=join)
    write_whole(out, timeline_html(outcome.episode, outcome.sequential))
    if save:
        outcome.episode.save(save)
    if as_json:
        print(json.dumps(summary(outcome) | {"timeline": str(out)}))
        return
    print_demo(console, outcome)
    console.print(f"timeline: {out}", highlight=False, soft_wrap=True)


app.command(name="run")(guarded(ask))
app.command(name="chat")(guarded(converse))


@app.command()
@guarded
def view(
    episode: Annotated[Path, typer.Argument(help="An episode saved as JSON.")],
    against: Annotated[Path | None, typer.Option(help="A one-agent episode to compare with.")] = None,
    out: Annotated[Path, typer.Option(help="HTML file for the timeline.")] = Path("timeline.html"),
) -> None:
    """Draw a saved episode as an HTML page."""
    check_writable(out)
    write_whole(out, timeline_html(_load(episode), _load(against) if against else None))
    print(out)


app.command(name="eval", cls=Command)(guarded(evaluate))
app.command(name="serve")(guarded(serve))
app.command(name="profile")(guarded(profile_step))


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
@guarded
def train(ctx: typer.Context) -> None:
    """Train a model: see asyncthink train --help."""
    from asyncthink.cli.train import app as commands

    code = commands(args=ctx.args, prog_name="asyncthink train", standalone_mode=False)
    if code == 130:  # typer turns Ctrl-C into an exit code
        raise KeyboardInterrupt
    raise typer.Exit(code or 0)


def _load(path: Path) -> Episode:
    try:
        return Episode.load(path)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path}: expected an episode's JSON, got {error}") from None


def main() -> None:
    """Entry point of the console script."""
    try:
        app()
    finally:
        try:
            sys.stdout.flush()
        except OSError:  # a full disk or a closed pipe was already reported: keep the interpreter from flushing again
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
