"""What the commands print when an episode is over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from asyncthink.demo import Outcome
from asyncthink.live import printable
from asyncthink.records import Episode


def print_demo(console: Console, outcome: Outcome) -> None:
    """The verdict, then organized against alone, then what sharing saved."""
    episode = outcome.episode
    print_answer(console, episode)
    verdict = "verified" if outcome.solved else "not solved"
    style = "bold green" if outcome.solved else "bold red"
    console.print(Text(f"{outcome.right} of {outcome.asked} different expressions are right: {verdict}", style=style))
    console.print()
    console.print(_comparison(outcome))
    console.print()
    console.print(
        f"{episode.forks} forks, {episode.joins} joins ({episode.join_mode}, {episode.context} context), "
        f"{episode.concurrency:.2f} agents at work on average",
        highlight=False,
    )
    console.print(
        f"K/V read in place: {outcome.pages_shared} pages, {episode.kv_bytes_shared:,} bytes not copied; "
        f"copied: {episode.kv_bytes_copied:,} bytes",
        highlight=False,
    )
    note = f"seconds: median of {outcome.rounds}, taken in turn, without the screen"
    console.print(note, style="dim", highlight=False)


def _comparison(outcome: Outcome) -> Table:
    """Organized against alone. How much shorter or faster is said only where the answer is at least as good."""
    episode, alone = outcome.episode, outcome.sequential
    fair = episode.answer is not None and outcome.right >= outcome.right_alone
    path, path_alone = episode.critical_path_tokens, alone.critical_path_tokens
    wall, wall_alone = episode.wall_seconds, alone.wall_seconds
    shorter = _ratio(path_alone, path, "shorter", "longer") if fair else ""
    faster = _ratio(wall_alone, wall, "faster", "slower") if fair else ""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for heading in ("", "organized", "one agent", ""):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    table.add_row("critical path", f"{path} tokens", f"{path_alone} tokens", shorter)
    table.add_row("wall clock", f"{wall:.3f} s", f"{wall_alone:.3f} s", faster)
    table.add_row("all tokens", f"{episode.total_tokens} tokens", f"{alone.total_tokens} tokens", "")
    table.add_row("right", f"{outcome.right} of {outcome.asked}", f"{outcome.right_alone} of {outcome.asked}", "")
    return table


def print_answer(console: Console, episode: Episode) -> None:
    """The answer, or how the episode ended without one; format errors below."""
    if episode.answer is None:
        console.print(Text(f"no answer ({episode.finish})", style="bold red"))
    else:
        console.print(Text.assemble(("answer  ", "bold"), printable(episode.answer.strip())), soft_wrap=True)
    for error in episode.format_errors:
        console.print(Text(f"format error: {printable(error)}", style="red"), soft_wrap=True)


def print_figures(console: Console, episode: Episode) -> None:
    """One line about the episode."""
    console.print(
        f"{episode.critical_path_tokens} tokens on the critical path, {episode.total_tokens} in all, "
        f"{episode.forks} forks, {episode.joins} joins, {episode.wall_seconds:.2f} s, "
        f"{episode.kv_bytes_shared:,} bytes of K/V read in place, {episode.kv_bytes_copied:,} copied",
        highlight=False,
        soft_wrap=True,
    )


def print_evaluation(console: Console, rows: Sequence[dict[str, Any]]) -> None:
    """A row for each result of :func:`asyncthink.evaluation.evaluate`; shares in percent, means an episode.

    path: drawn tokens on the critical path; errors: episodes with format errors.
    """
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("mode", no_wrap=True)
    asked = list(rows[0]["at_least"])
    for heading in (*(f">={count}" for count in asked), "path", "tokens", "agents", "errors"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            " ".join([row["mode"], *(row[name] for name in ("context", "join") if name in row)]),
            *(f"{100 * row['at_least'][count]:.1f}" for count in asked),
            *(f"{row[name]:.1f}" for name in ("critical_path_tokens", "total_tokens")),
            f"{row['concurrency']:.2f}",
            f"{100 * row['episodes_with_format_errors']:.1f}",
        )
    console.print(
        f"{rows[0]['puzzles']} held-out {rows[0]['task']} puzzles, pool {rows[0]['pool']}; shares in percent",
        highlight=False,
    )
    console.print(table)


def _ratio(alone: float, organized: float, better: str, worse: str) -> str:
    if not alone or not organized:
        return ""
    if alone == organized:
        return "the same"
    return f"{alone / organized:.2f}x {better}" if organized < alone else f"{organized / alone:.2f}x {worse}"
