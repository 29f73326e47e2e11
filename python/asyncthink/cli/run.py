"""The command ``asyncthink run``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from asyncthink.cli.options import (
    Context,
    Depth,
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
from asyncthink.cli.remote import Servers, connect
from asyncthink.episode.options import default_forms
from asyncthink.files import check_writable, write_whole
from asyncthink.view.html import timeline_html

if TYPE_CHECKING:
    from asyncthink.engine.remote.sampler import RemoteSampler
    from asyncthink.engine.sampler import ForkJoinSampler

Messages = list[dict[str, str]]


def ask(
    model: Annotated[str, typer.Option(help="Folder or hub id of any causal language model.")],
    question: Annotated[str | None, typer.Argument(help="The question.")] = None,
    system: Annotated[str | None, typer.Option(help="System prompt before the question.")] = None,
    messages: Annotated[
        str | None, typer.Option(help="Instead of a question: a JSON file of [{role, content}, ...]; - reads stdin.")
    ] = None,
    as_json: Json = False,
    mode: Annotated[str, typer.Option(help="asyncthink, sequential or parallel.")] = "asyncthink",
    answer: Annotated[
        str | None,
        typer.Option(
            help="tags (between answer tags) or text (the whole reply; not with asyncthink). Default: text for a model "
            "without asyncthink.json in the other modes."
        ),
    ] = None,
    join: JoinMode = "exact",
    context: Context = "shared",
    pool: Pool = 4,
    guide: Annotated[
        str | None,
        typer.Option(help="off, legal or plan; plan by default, but off for a model with an asyncthink.json."),
    ] = None,
    forks: Annotated[int | None, typer.Option(help="Forks of a plan; two or more by default.")] = None,
    depth: Depth = 1,
    max_tokens: Annotated[int, typer.Option(help="Tokens that one agent may draw.")] = 1024,
    temperature: Annotated[float, typer.Option(help="0 takes the most likely token.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of the random streams.")] = 0,
    device: Device = "auto",
    dtype: Dtype = "auto",
    weights: Weights = None,
    num_states: NumStates = None,
    fallback: Fallback = None,
    revision: Revision = None,
    server: Servers = None,
    explain: Annotated[bool, typer.Option("--explain", help="Print how the model runs here, and why.")] = False,
    out: Annotated[Path | None, typer.Option(help="HTML file for the timeline.")] = None,
    save: Save = None,
) -> None:
    """Ask any model a question, with organizer and worker instructions in its own chat format."""
    check_writable(out, save)
    request: Any = question_from(question, system, messages)
    if request is None and not explain:
        raise ValueError("question: expected a text, or --messages FILE, got neither")
    console = Console(quiet=as_json)
    with loading(quiet=as_json, here=not server) as progress:
        from asyncthink.episode.params import SamplingParams
        from asyncthink.view.report import print_answer, print_explanation, print_figures, print_texts
        from asyncthink.view.terminal import watcher

        params = SamplingParams(temperature=temperature, max_tokens=max_tokens, seed=seed)
        agents: dict[str, Any] = {"mode": mode, "pool": pool, "context": context, "join": join, "depth": depth}
        forms: dict[str, Any] = {"answer": answer, "guide": guide}
        placed: dict[str, Any] = {"device": device, "dtype": dtype, "weights": weights}
        placed |= {"num_states": num_states, "fallback": fallback}
        sampler: ForkJoinSampler | RemoteSampler
        if server:
            there = connect(server, model, revision, progress, **placed)
            agents |= default_forms(there.prompts is not None, mode, **forms) | {"forks": forks}
            sampler = there.sampler(**agents)
        else:
            from asyncthink.engine.sampler import ForkJoinSampler
            from asyncthink.engine.saved_prompts import saved_prompts

            trained = None not in (answer, guide) or saved_prompts(model, revision) is not None
            agents |= default_forms(trained, mode, **forms) | {"forks": forks}
            sampler = ForkJoinSampler(model, **agents, **placed, revision=revision, progress=progress)
    explanation = sampler.explain() if explain else {}
    print_explanation(console, explanation)
    if request is None:
        _print_json(explanation, as_json)
        return
    if as_json:
        (episode,) = sampler.generate([request], params)
    else:
        first = "organizer" if mode == "asyncthink" else "agent 1"
        with watcher(console, texts=True, first=first) as screen, sampler.stream(request, params) as stream:
            for event in stream:
                screen.show(event)
        episode = stream.episode
    episode.meta["model"] = model
    if explain:
        episode.meta["explain"] = explanation
    if save:
        episode.save(save)
    if out:
        write_whole(out, timeline_html(episode))
    _print_json(episode.to_dict(), as_json)
    print_texts(console, episode)
    print_answer(console, episode)
    print_figures(console, episode)


def question_from(question: str | None, system: str | None, messages: str | None) -> str | Messages | None:
    """The question: a text, or chat messages; None if none is given.

    Raises ValueError for a question beside ``messages``, for a system prompt beside ``messages`` or without a question,
    and for a file that does not hold messages.

    >>> question_from("How many?", "Be brief.", None)
    [{'role': 'system', 'content': 'Be brief.'}, {'role': 'user', 'content': 'How many?'}]
    """
    if messages is not None:
        if question is not None or system is not None:
            raise ValueError("messages: expected no question and no --system beside --messages, got both")
        return _read_messages(messages)
    if system is None:
        return question
    if question is None:
        raise ValueError("system: expected a question beside it, got none")
    return [{"role": "system", "content": system}, {"role": "user", "content": question}]


def _read_messages(source: str) -> Messages:
    text = sys.stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8")
    try:
        messages = json.loads(text)
    except ValueError as error:
        raise ValueError(f"messages: expected JSON in {source}, got {error}") from None
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"messages: expected a list of {{role, content}} in {source}, got {type(messages).__name__}")
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise ValueError(f"messages[{number}]: expected {{role, content}}, got {message!r}")
    return messages


def _print_json(values: dict[str, Any], requested: bool) -> None:
    if requested:
        print(json.dumps(values))
