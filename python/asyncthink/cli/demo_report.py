"""The printed report of the demo: the verdict, the costs, and the comparison with one agent."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from asyncthink.cli.demo import Outcome
from asyncthink.view.report import print_answer, ratio


def print_demo(console: Console, outcome: Outcome) -> None:
    """The verdict, then the comparison with one agent, then the K/V that sharing saved."""
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
    note = f"seconds: median of {outcome.rounds}, timed alternately, without the screen"
    console.print(note, style="dim", highlight=False)


def _comparison(outcome: Outcome) -> Table:
    """Organized against one agent. Ratios are shown only if the organized answer is at least as good."""
    episode, alone = outcome.episode, outcome.sequential
    fair = episode.answer is not None and outcome.right >= outcome.right_alone
    path, path_alone = episode.critical_path_tokens, alone.critical_path_tokens
    wall, wall_alone = episode.wall_seconds, alone.wall_seconds
    shorter = ratio(path_alone, path, "shorter", "longer") if fair else ""
    faster = ratio(wall_alone, wall, "faster", "slower") if fair else ""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for heading in ("", "organized", "one agent", ""):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    table.add_row("critical path", f"{path} tokens", f"{path_alone} tokens", shorter)
    table.add_row("wall clock", f"{wall:.3f} s", f"{wall_alone:.3f} s", faster)
    table.add_row("all tokens", f"{episode.total_tokens} tokens", f"{alone.total_tokens} tokens", "")
    table.add_row("right", f"{outcome.right} of {outcome.asked}", f"{outcome.right_alone} of {outcome.asked}", "")
    return table
