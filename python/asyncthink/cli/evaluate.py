"""The command ``asyncthink eval``."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TaskID

from asyncthink.cli.options import Depth, Device, Dtype, Fallback, NumStates, Revision, Weights, loading
from asyncthink.cli.ray_options import RayActors, RayAddress, RayBatch, RayCpus, RayGpus
from asyncthink.cli.remote import Servers, connect
from asyncthink.episode.options import Mode

if TYPE_CHECKING:
    from asyncthink.engine.loaded import LoadedModel
    from asyncthink.engine.remote.loaded import RemoteModel
    from asyncthink.integrations.ray import RayModel


def evaluate(
    model: Annotated[
        list[str] | None, typer.Option(help="PATH for every mode, or MODE=PATH for one mode. May be repeated.")
    ] = None,
    task: Annotated[str, typer.Option(help="The task whose held-out puzzles are solved.")] = "countdown",
    puzzles: Annotated[int, typer.Option(min=1, help="Number of different puzzles.")] = 200,
    first: Annotated[int, typer.Option(help="Seed of the first held-out puzzle.")] = 0,
    part: Annotated[
        str, typer.Option(help="Held-out puzzles: all, or a half: validation (GRPO chooses by it) or test.")
    ] = "all",
    mode: Annotated[str, typer.Option(help="One or several of sequential,parallel,asyncthink.")] = "asyncthink",
    context: Annotated[str, typer.Option(help="One or several of shared,isolated.")] = "shared",
    join: Annotated[str, typer.Option(help="One or several of exact,append,link.")] = "exact",
    pool: Annotated[
        int, typer.Option(help="Agents alive at the same time: the organizer and its workers, or parallel traces.")
    ] = 4,
    depth: Depth = 1,
    max_tokens: Annotated[int, typer.Option(help="Tokens that one agent may draw, the same in every mode.")] = 700,
    temperature: Annotated[
        float, typer.Option(help="0 takes the most likely token; all traces of `parallel` are then the same.")
    ] = 0.0,
    draws: Annotated[int, typer.Option(min=1, help="Episodes per puzzle; more than 1 needs a temperature.")] = 1,
    aggregate: Annotated[
        str | None, typer.Option(help="Parallel answers: union or vote. Default: union if the task asks for several.")
    ] = None,
    latency: Annotated[int, typer.Option(min=0, help="Number of puzzles to time, one at a time; 0: none.")] = 20,
    seed: Annotated[int, typer.Option(help="Seed of the random streams.")] = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    weights: Weights = None,
    num_states: NumStates = None,
    fallback: Fallback = None,
    revision: Revision = None,
    ray_actors: RayActors = 0,
    ray_cpus: RayCpus = 1,
    ray_gpus: RayGpus = None,
    ray_batch: RayBatch = 16,
    ray_address: RayAddress = None,
    server: Servers = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Solve held-out puzzles, the same in every mode: solutions found, concurrency, critical path, format errors."""
    console = Console(quiet=as_json, stderr=True)
    with contextlib.ExitStack() as stack, loading(quiet=as_json, here=not server) as progress:
        from asyncthink.episode.params import SamplingParams
        from asyncthink.eval import evaluation
        from asyncthink.tasks import task as find_task
        from asyncthink.tasks.grading import how_to_aggregate
        from asyncthink.tasks.held_out import held_out as held_out_puzzles
        from asyncthink.view.report import print_evaluation

        params = SamplingParams(temperature=temperature, max_tokens=max_tokens, seed=seed)
        puzzle_task = find_task(task)
        how_to_aggregate(puzzle_task, aggregate)
        settings = evaluation.settings(mode, context, join)
        paths = models_by_mode(model or [], [setting["mode"] for setting in settings])
        models: Mapping[str, LoadedModel | RayModel | RemoteModel]
        placed: dict[str, Any] = {"device": device, "dtype": dtype, "weights": weights}
        placed |= {"num_states": num_states, "fallback": fallback}
        if server:
            if ray_actors or len(set(paths.values())) > 1:
                raise ValueError("server: expected one model and no Ray actors beside it")
            there = connect(server, next(iter(paths.values())), revision, progress, **placed)
            stack.callback(there.close)
            models = dict.fromkeys(paths, there)
        elif ray_actors:
            from asyncthink.integrations.ray import load_on_actors

            progress(f"loading the model on {ray_actors} Ray actors")
            pool_of: dict[str, Any] = {"cpus": ray_cpus, "gpus": ray_gpus, "batch": ray_batch, "address": ray_address}
            say = functools.partial(console.print, highlight=False, markup=False)
            pool_of |= placed | {"revision": revision, "say": say}
            loaded = stack.enter_context(load_on_actors(set(paths.values()), ray_actors, **pool_of))
            models = {mode: loaded[path] for mode, path in paths.items()}
        else:
            models = _load(paths, **placed, revision=revision, progress=progress)
        samplers = [models[setting["mode"]].sampler(pool=pool, depth=depth, **setting) for setting in settings]
        held_out = held_out_puzzles(puzzle_task, puzzles, first, part)  # type: ignore[arg-type]
        resources = stack.pop_all()
    with resources, Progress(*Progress.get_default_columns(), MofNCompleteColumn(), console=console) as bar:
        rows = []
        for setting, sampler in zip(settings, samplers, strict=True):
            line = bar.add_task(" ".join(setting.values()), total=puzzles * draws)
            advance = functools.partial(_advance, bar, line)
            row = evaluation.evaluate(
                sampler, puzzle_task, held_out, params, draws=draws, aggregate=aggregate, progress=advance
            )
            rows.append(row | _weights(paths[setting["mode"]], models[setting["mode"]]))
        if latency:
            timed = held_out[:latency]
            line = bar.add_task("seconds", total=len(timed))
            advance = functools.partial(_advance, bar, line)
            named = {row["name"]: sampler for row, sampler in zip(rows, samplers, strict=True)}
            seconds = evaluation.measure_seconds(named, puzzle_task, timed, params, draws=draws, progress=advance)
            rows = [evaluation.with_seconds(row, seconds[row["name"]]) for row in rows]
    report = {
        "task": task,
        "asked": puzzle_task.asked,
        "puzzles": puzzles,
        "first": first,
        "part": part,
        "questions_sha256": evaluation.fingerprint(puzzle_task, held_out),
        "pool": pool,
        "depth": depth,
        "budget": max_tokens,  # the key of stored reports
        "temperature": temperature,
        "draws": draws,
        "seed": seed,
        "timed_puzzles": min(latency, puzzles),
        "machine": models[settings[0]["mode"]].machine,
        "rows": rows,
        "comparisons": [evaluation.compare(row, other) for k, row in enumerate(rows) for other in rows[:k]],
    }
    if as_json:
        print(json.dumps(report))
    else:
        print_evaluation(Console(), report)


def models_by_mode(given: Sequence[str], modes: Sequence[str]) -> dict[str, str]:
    """The model of each mode, from values ``PATH`` and ``MODE=PATH``; by default the shipped model.

    Raises ValueError for a mode without a model or with two, and for a model whose mode is not evaluated.

    >>> models_by_mode(["small", "parallel=runs/p"], ["parallel", "asyncthink"])
    {'parallel': 'runs/p', 'asyncthink': 'small'}
    """
    from asyncthink import checkpoint_path

    paths: dict[str, str] = {}  # mode -> path; "": the path for all modes
    for value in given or [str(checkpoint_path())]:
        head, equals, path = value.partition("=")
        mode, path = (head, path) if equals and head in tuple(Mode) else ("", value)
        if mode in paths:
            raise ValueError(f"model: expected one {f'for {mode}' if mode else 'for all modes'}, got {value!r} too")
        if mode and mode not in modes:
            raise ValueError(f"model: expected one of the modes evaluated ({', '.join(modes)}), got {value!r}")
        paths[mode] = path
    for mode in modes:
        if mode not in paths and "" not in paths:
            raise ValueError(f"model: expected {mode}=PATH or a PATH for all modes, got {', '.join(given)}")
    return {mode: paths.get(mode, paths.get("", "")) for mode in dict.fromkeys(modes)}


def _load(paths: dict[str, str], **options: Any) -> dict[str, LoadedModel]:
    """The model of each mode; a model of several modes is loaded once."""
    from asyncthink.engine.loaded import LoadedModel

    loaded = {path: LoadedModel.load(path, **options) for path in dict.fromkeys(paths.values())}
    return {mode: loaded[path] for mode, path in paths.items()}


def _weights(path: str, model: LoadedModel | RayModel | RemoteModel) -> dict[str, Any]:
    return {"model": "/".join(Path(path).parts[-2:]), "parameters": model.parameters}


def _advance(bar: Progress, line: TaskID, done: int) -> None:
    bar.update(line, completed=done)
