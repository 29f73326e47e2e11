"""The command ``asyncthink``: demo, run, view, eval, profile, train."""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, NoReturn, ParamSpec

import typer
from rich.console import Console

from asyncthink.eval_command import evaluate
from asyncthink.files import write_whole
from asyncthink.profile_command import profile_step
from asyncthink.records import Episode
from asyncthink.viz import timeline_html

P = ParamSpec("P")
PUZZLE = 0  # shown when no --seed is given

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Asynchronous thinking: one model organizes its own workers.",
)

Pool = Annotated[int, typer.Option(help="The organizer and at most POOL - 1 live workers.")]
Context = Annotated[str, typer.Option(help="What a worker sees: shared (the organizer's tokens) or isolated.")]
JoinMode = Annotated[str, typer.Option("--join", help="How a return enters the organizer: exact, append or link.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Save = Annotated[Path | None, typer.Option(help="Also write the episode as JSON, for `asyncthink view`.")]


def guarded(command: Callable[P, None]) -> Callable[P, None]:
    """Bad input, a full disk and Ctrl-C end a command with one line on stderr and an exit code, not a traceback."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
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
            place = f"{error.filename}: " if error.filename else ""
            _fail(f"{place}{error.strerror or error}", 1)
        except (ValueError, RuntimeError, MemoryError, ImportError) as error:
            _fail(" ".join(str(error).split()) or type(error).__name__, 1)

    return run


def _fail(message: str, code: int) -> NoReturn:
    if message:
        print(f"asyncthink: {message}", file=sys.stderr)
    raise typer.Exit(code)


@app.command()
@guarded
def demo(
    as_json: Json = False,
    model: Annotated[str | None, typer.Option(help="Another model than the one in the box.")] = None,
    seed: Annotated[int, typer.Option(help="Number of the held-out puzzle.")] = PUZZLE,
    join: JoinMode = "exact",
    context: Context = "shared",
    pool: Pool = 4,
    out: Annotated[Path, typer.Option(help="Where the timeline goes.")] = Path("timeline.html"),
    save: Save = None,
) -> None:
    """Watch a small trained model organize a countdown puzzle, and compare it with one agent alone."""
    _writable(out, save)
    console = Console(quiet=as_json)
    with console.status("loading the model"):
        from asyncthink import checkpoint_path
        from asyncthink.demo import play, summary
        from asyncthink.report import print_demo
        from asyncthink.serve import Served

        served = Served.load(model or checkpoint_path())
    outcome = play(served, console, seed=seed, pool=pool, context=context, join=join)
    write_whole(out, timeline_html(outcome.episode, outcome.sequential))
    if save:
        outcome.episode.save(save)
    if as_json:
        print(json.dumps(summary(outcome) | {"timeline": str(out)}))
        return
    print_demo(console, outcome)
    console.print(f"timeline: {out}", highlight=False, soft_wrap=True)


@app.command()
@guarded
def run(
    question: Annotated[str, typer.Argument(help="What to ask.")],
    model: Annotated[str, typer.Option(help="Folder or hub id of any causal language model.")],
    as_json: Json = False,
    mode: Annotated[str, typer.Option(help="asyncthink, sequential or parallel.")] = "asyncthink",
    join: JoinMode = "exact",
    context: Context = "shared",
    pool: Pool = 4,
    max_tokens: Annotated[int, typer.Option(help="Tokens that one agent may draw.")] = 1024,
    temperature: Annotated[float, typer.Option(help="0 takes the most likely token.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Key of the random streams.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Write a timeline here.")] = None,
    save: Save = None,
) -> None:
    """Ask any model, prompted with our organizer and worker instructions in its own chat format."""
    _writable(out, save)
    console = Console(quiet=as_json)
    with console.status("loading the model"):
        from asyncthink.live import watcher
        from asyncthink.report import print_answer, print_figures
        from asyncthink.sampler import SamplingParams
        from asyncthink.serve import Served

        params = SamplingParams(temperature=temperature, max_tokens=max_tokens, seed=seed)
        sampler = Served.load(model).sampler(mode=mode, pool=pool, context=context, join=join)
    if as_json:
        (episode,) = sampler.generate([question], params)
    else:
        with watcher(console) as screen, sampler.stream(question, params) as stream:
            for event in stream:
                screen.show(event)
        episode = stream.episode
    episode.meta["model"] = model
    if save:
        episode.save(save)
    if out:
        write_whole(out, timeline_html(episode))
    if as_json:
        print(json.dumps(episode.to_dict()))
        return
    print_answer(console, episode)
    print_figures(console, episode)


@app.command()
@guarded
def view(
    episode: Annotated[Path, typer.Argument(help="An episode saved as JSON.")],
    against: Annotated[Path | None, typer.Option(help="A one-agent episode to compare with.")] = None,
    out: Annotated[Path, typer.Option(help="Where the timeline goes.")] = Path("timeline.html"),
) -> None:
    """Draw a saved episode as an HTML page."""
    _writable(out)
    write_whole(out, timeline_html(_load(episode), _load(against) if against else None))
    print(out)


app.command(name="eval")(guarded(evaluate))
app.command(name="profile")(guarded(profile_step))


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
@guarded
def train(ctx: typer.Context) -> None:
    """Train: asyncthink train --help says what."""
    from asyncthink.train.commands import app as commands

    code = commands(args=ctx.args, prog_name="asyncthink train", standalone_mode=False)
    if code == 130:  # typer turned Ctrl-C into an exit code
        raise KeyboardInterrupt
    raise typer.Exit(code or 0)


def _writable(*paths: Path | None) -> None:
    """Minutes of work must not end at a folder that is not there."""
    for path in paths:
        if path is not None and path.is_dir():
            raise ValueError(f"{path}: expected a file to write, got a folder")
        if path is not None and not path.parent.is_dir():
            raise ValueError(f"{path}: expected an existing folder to write into, got {path.parent}")


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
        except OSError:  # a full disk, a closed pipe: said already, and the interpreter must not try again
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
