"""The commands' output after an episode or an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from asyncthink.episode import tree
from asyncthink.episode.records import Episode
from asyncthink.view.terminal import colour, printable

_WIDEST = 160  # columns of a table, whatever the terminal's width


def print_texts(console: Console, episode: Episode) -> None:
    """What each agent wrote, whole, under a line with its name, its sub-query and how it ended."""
    subqueries = {event.peer: " ".join(event.text.split()) for event in episode.events if event.kind == "fork"}
    for trace in episode.traces:
        counted = f"{trace.decoded} token{'s' * (trace.decoded != 1)}, {trace.finish}"
        title = Text.assemble(
            (tree.name(episode.traces, trace.agent), f"bold {colour(trace.agent)}"), (f"  {counted}", "dim")
        )
        if subquery := printable(subqueries.get(trace.agent, "")):
            title.append(f"  {subquery}", style="dim italic")
            title.truncate(console.width, overflow="ellipsis")
        console.print(title, soft_wrap=True, highlight=False)
        console.print(Text(printable(trace.text.strip()) or "nothing"), soft_wrap=not console.is_terminal)
        console.print()


def print_answer(console: Console, episode: Episode) -> None:
    """The answer, or how the episode ended without one, its failures and format errors."""
    if episode.answer is None:
        console.print(Text(f"no answer ({episode.finish})", style="bold red"))
    else:
        answer = Text.assemble(("answer  ", "bold"), printable(episode.answer.strip()))
        console.print(answer, soft_wrap=not console.is_terminal)
    for failure in episode.failures:
        console.print(Text(f"failure: {printable(failure)}", style="red"), soft_wrap=True)
    for error in episode.format_errors:
        console.print(Text(f"format error: {printable(error)}", style="red"), soft_wrap=True)


def print_explanation(console: Console, explanation: dict[str, str]) -> None:
    """How the model runs, one line for each part."""
    for name, reason in explanation.items():
        console.print(Text.assemble((f"{name:10}", "bold"), reason), soft_wrap=True, highlight=False)


def print_figures(console: Console, episode: Episode) -> None:
    """One line about the episode."""
    console.print(
        f"{episode.critical_path_tokens} tokens on the critical path, {episode.total_tokens} in all, "
        f"{episode.forks} forks, {episode.joins} joins, {episode.wall_seconds:.2f} s, "
        f"{episode.kv_bytes_shared:,} bytes of K/V read in place, {episode.kv_bytes_copied:,} copied{_states(episode)}",
        highlight=False,
        soft_wrap=True,
    )


def _states(episode: Episode) -> str:
    return f", {episode.state_bytes_copied:,} bytes of states copied" if episode.state_bytes_copied else ""


def print_evaluation(console: Console, report: dict[str, Any]) -> None:
    """The report of ``asyncthink eval``: a row for each setting, then each setting compared with those before it.

    Shares are in percent, tokens are means over episodes. path: drawn tokens on the critical path; eta: both readings;
    errors: episodes with a format error; seconds: median.
    """
    counts = list(report["rows"][0]["at_least"])
    timed = ["seconds"] if report["timed_puzzles"] else []
    headings = ["mode", *(f">={n}" for n in counts), "right", "path", "tokens", "eta", "eta work", "errors", *timed]
    table = plain_table(headings)
    for row in report["rows"]:
        shares = [*row["at_least"].values(), row["accuracy"]]
        tokens = [row["critical_path_tokens"], row["total_tokens"]]
        table.add_row(
            row["name"],
            *(f"{100 * share['value']:.1f}" for share in shares),
            *(f"{mean['value']:.1f}" for mean in tokens),
            *(f"{row[name]['value']:.2f}" for name in ("eta_agents", "eta_workers")),
            f"{100 * row['format_errors']['value']:.1f}",
            *(f"{row[name]['value']:.3f}" for name in timed),
        )
    draws = f"{report['draws']} draws each, " if report["draws"] > 1 else ""
    console.print(
        f"{report['puzzles']} held-out {report['task']} puzzles, {draws}pool {report['pool']}, "
        f"at most {report['budget']} tokens an agent; {report['machine']}",
        highlight=False,
        soft_wrap=True,
    )
    console.print(table, width=_WIDEST, crop=False)
    for comparison in report["comparisons"]:
        console.print(compared(comparison, report["asked"]), highlight=False, soft_wrap=True)


def compared(comparison: dict[str, Any], asked: int) -> str:
    """One line that compares a setting with another one, with 95% intervals.

    >>> parts = {"solved": {"value": 0.183, "low": 0.151, "high": 0.212},
    ...          "critical_path_tokens": {"value": 0.71, "low": 0.7, "high": 0.72}}
    >>> compared({"of": "asyncthink", "against": "parallel", **parts}, 4)
    'asyncthink - parallel: all 4 +18.3 [15.1, 21.2] points; critical path x0.710 [0.700, 0.720]'
    """
    points = {name: round(100 * value, 1) + 0.0 for name, value in comparison["solved"].items()}  # no "-0.0"
    parts = [f"{solved(asked)} {points['value']:+.1f} [{points['low']:.1f}, {points['high']:.1f}] points"]
    for name, title in (("critical_path_tokens", "critical path"), ("seconds", "seconds")):
        if name in comparison:
            ratio = comparison[name]
            parts.append(f"{title} x{ratio['value']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]")
    return f"{comparison['of']} - {comparison['against']}: " + "; ".join(parts)


def solved(asked: int) -> str:
    """The heading for solved puzzles: ``asked`` results, or one."""
    return f"all {asked}" if asked > 1 else "solved"


def plain_table(headings: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in headings:
        table.add_column(heading, justify="left" if heading == headings[0] else "right", no_wrap=True)
    return table


def ratio(alone: float, organized: float, better: str, worse: str) -> str:
    if not alone or not organized:
        return ""
    if alone == organized:
        return "the same"
    return f"{alone / organized:.2f}x {better}" if organized < alone else f"{organized / alone:.2f}x {worse}"
