"""The command ``asyncthink train synthesize``."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

from asyncthink.cli.options import Context, Json, Pool
from asyncthink.files import check_writable

if TYPE_CHECKING:
    from asyncthink.train.synthesize.journal import Totals
    from asyncthink.train.synthesize.questions import Question

API_KEY = "OPENAI_API_KEY"


def synthesize(
    server: Annotated[str, typer.Option(help="Base URL of an OpenAI-compatible server.")],
    model: Annotated[str, typer.Option(help="The model's name there.")],
    out: Annotated[Path, typer.Option(help="JSONL file of the traces. What it holds already is not asked for again.")],
    questions: Annotated[
        Path | None, typer.Option(help="Questions: a .txt file with one a line, or .jsonl, .json, .parquet.")
    ] = None,
    task: Annotated[str | None, typer.Option(help="A task, in the place of a file; it grades the answers.")] = None,
    count: Annotated[int, typer.Option(help="Number of the task's questions.")] = 100,
    samples: Annotated[int, typer.Option(help="Traces of each question.")] = 1,
    attempts: Annotated[int, typer.Option(help="Replies for each trace, until one keeps the rules.")] = 3,
    least_score: Annotated[float, typer.Option(help="Reject answers that are graded lower.")] = 1.0,
    guide: Annotated[
        str | None,
        typer.Option(help="plan or legal: a server of `asyncthink serve` runs whole episodes under this guide."),
    ] = None,
    pool: Pool = 4,
    context: Context = "shared",
    least_forks: Annotated[int, typer.Option(help="Forks of a trace, at least.")] = 1,
    most_forks: Annotated[int | None, typer.Option(help="At most. Default: 4; with a guide POOL - 1.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the action sequences.")] = 0,
    temperature: Annotated[float | None, typer.Option(help="Default: the server's.")] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="Tokens of a reply; with a guide, of each agent. Default: the server's.")
    ] = None,
    concurrency: Annotated[int, typer.Option(help="Requests at the same time.")] = 8,
    retries: Annotated[int, typer.Option(help="How often a request is sent again after 429, 5xx or no answer.")] = 8,
    timeout: Annotated[float, typer.Option(help="Seconds that a request may take.")] = 600.0,
    price_in: Annotated[float, typer.Option(help="Price of a million tokens that the model reads.")] = 0.0,
    price_out: Annotated[float, typer.Option(help="Price of a million tokens that it writes.")] = 0.0,
    max_cost: Annotated[float | None, typer.Option(help="Begin no request once this much is spent.")] = None,
    extra: Annotated[str, typer.Option(help="More fields of the requests, as a JSON object.")] = "{}",
    api_key: Annotated[str | None, typer.Option(help=f"Default: ${API_KEY}; prefer it, others can see this.")] = None,
    as_json: Json = False,
) -> None:
    """Let a model write traces for the cold start, with random action sequences; go on where an earlier call ended."""
    from asyncthink.train.synthesize.asking import Asking, Document, Organized

    try:
        from asyncthink.train.synthesize.run import Synthesis
        from asyncthink.train.synthesize.run import synthesize as run
    except ImportError as error:
        raise ImportError(f'synthesize: {error}; install "asyncthink-kernels[synthesize]"') from None
    check_writable(out)
    if guide is None:
        asking: Asking = Document(pool, (least_forks, 4 if most_forks is None else most_forks))
    else:
        asking = Organized(guide, pool, (least_forks, pool - 1 if most_forks is None else most_forks), context)
    options = Synthesis(
        server=server,
        model=model,
        out=out,
        asking=asking,
        samples=samples,
        attempts=attempts,
        least_score=least_score,
        seed=seed,
        temperature=temperature,
        max_tokens=max_tokens,
        concurrency=concurrency,
        retries=retries,
        timeout=timeout,
        price_in=price_in,
        price_out=price_out,
        max_cost=max_cost,
        extra=_object(extra),
    )
    asked = _questions(questions, task, count)
    key = api_key or os.environ.get(API_KEY) or "none"
    with Progress(
        *Progress.get_default_columns(), MofNCompleteColumn(), console=Console(stderr=True, quiet=as_json)
    ) as bar:
        line = bar.add_task("traces", total=len(asked) * samples)

        def advance(totals: Totals) -> None:
            bar.update(line, completed=totals.kept, description=_told(totals, options.cost(totals)))

        totals = run(options, asked, key, advance)
    summary = _summary(totals, options.cost(totals)) | {"asked": len(asked) * samples, "out": str(out)}
    print(json.dumps(summary) if as_json else f"{_told(totals, options.cost(totals))}: {out}")


def _questions(path: Path | None, task: str | None, count: int) -> list[Question]:
    from asyncthink.tasks import task as find_task
    from asyncthink.train.synthesize.questions import from_file, from_task

    if (path is None) == (task is None):
        raise ValueError(f"questions: expected --questions or --task, got {'neither' if path is None else 'both'}")
    return from_file(path) if path else from_task(find_task(task or ""), count)


def _object(text: str) -> dict[str, Any]:
    try:
        fields = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"extra: expected a JSON object, got {text!r:.80} ({error})") from None
    if not isinstance(fields, dict):
        raise ValueError(f"extra: expected a JSON object, got {text!r:.80}")
    return fields


def _told(totals: Totals, cost: float) -> str:
    parts = [f"{totals.kept} kept", f"{sum(totals.rejected.values())} rejected"]
    parts.append(f"{totals.prompt_tokens:,} + {totals.completion_tokens:,} tokens")
    return ", ".join([*parts, f"cost {cost:.2f}"] if cost else parts)


def _summary(totals: Totals, cost: float) -> dict[str, Any]:
    return {
        "kept": totals.kept,
        "rejected": dict(totals.rejected),
        "prompt_tokens": totals.prompt_tokens,
        "completion_tokens": totals.completion_tokens,
        "replies_without_usage": totals.unpriced,
        "cost": cost,
    }
