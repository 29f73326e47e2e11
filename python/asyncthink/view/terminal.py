"""A running episode: a lane for each agent on a terminal, a line for each event elsewhere."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from asyncthink.episode.records import Event, TokenEvent
from asyncthink.episode.tree import worker_name

_COLOURS = ("bright_blue", "cyan", "yellow", "magenta", "green", "bright_cyan", "red", "bright_magenta")
_TAG = re.compile(r"</?(?:FORK|JOIN)-\d{1,3}>|</?(?:ANSWER|RETURN)>")
_LANE_WIDTH = 30  # columns below which a lane is hard to read
_KEPT = 4000  # characters of a lane that fit the screen
_FRAME = 1 / 15  # seconds between two updates of the screen


class Watcher(Protocol):
    """Shows events one by one; a context manager around the episode."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def show(self, event: Event | TokenEvent) -> None: ...


def watcher(console: Console, pace: float | None = None, *, texts: bool = False, first: str = "organizer") -> Watcher:
    """Lanes on a terminal, at most ``pace`` steps a second so that a reader can follow; plain lines otherwise.

    With ``texts`` the plain lines have all that the agents write, line by line; and a lane becomes one line when its
    agent is done, and all disappear at the end: the caller prints the texts then, whole. ``first`` names agent 0.
    A quiet console gets lines, which it does not print, so that nothing waits for a reader.
    """
    lanes = console.is_terminal and not console.is_dumb_terminal and not console.quiet
    return LiveLanes(console, pace, keep=not texts, first=first) if lanes else PlainLines(console, texts, first)


def colour(agent: int) -> str:
    """The colour of an agent."""
    return _COLOURS[agent % len(_COLOURS)]


def printable(text: str) -> str:
    """``text`` without control characters, so that a model cannot control the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{MIDDLE DOT}" for c in text)


class PlainLines:
    """One line per event, as it happens; with ``texts`` also one for each line that an agent has written."""

    def __init__(self, console: Console, texts: bool = False, first: str = "organizer") -> None:
        self._console, self._texts, self._first = console, texts, first
        self._written: dict[int, str] = {}  # the line that each agent is writing
        self._paths: dict[int, tuple[int, ...]] = {0: ()}  # as of :func:`asyncthink.episode.tree.path`
        self._step = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for agent in sorted(self._written):
            self._write(agent, self._written[agent])

    def show(self, event: Event | TokenEvent) -> None:
        self._step = event.step
        if isinstance(event, TokenEvent):
            if self._texts and event.sampled:
                *lines, self._written[event.agent] = (self._written.get(event.agent, "") + event.text).split("\n")
                for line in lines:
                    self._write(event.agent, line)
            return
        self._write(event.agent, self._written.pop(event.agent, ""))
        path = self._paths.get(event.agent, ())
        if event.kind == "fork" and event.peer is not None and event.index is not None:
            self._paths[event.peer] = (*path, event.index)
        self._print(event.agent, _sentence(event, path), "")

    def _write(self, agent: int, line: str) -> None:
        if line.strip():
            self._print(agent, f"| {line}", "dim")

    def _print(self, agent: int, line: str, style: str) -> None:
        path = self._paths.get(agent)
        name = f"agent {agent + 1}" if path is None else worker_name(path) if path else self._first
        shown = Text.assemble(f"{self._step:5d}  {name:10}  ", (printable(line), style))
        self._console.print(shown, soft_wrap=True, highlight=False)


def _sentence(event: Event, path: tuple[int, ...]) -> str:
    """What an agent with this path did."""
    text = " ".join(event.text.split())
    worker = worker_name((*path, event.index or 0))
    return {
        "start": f"begins: {text}",
        "fork": f"forks {worker}: {text}",
        "wait": f"waits for {worker}",
        "join": f"joins {worker}: {text or 'nothing'}",
        "return": f"returns: {text or 'nothing'}",
        "answer": f"answers: {text}",
        "error": f"format error: {text}",
        "call": f"calls {text}",
        "tool": f"is told: {text or 'nothing'}",
        "stop": f"stops: {text}",
    }[event.kind]


@dataclass(slots=True)
class _Lane:
    title: str
    colour: str
    state: str = "thinking"
    pieces: list[tuple[str, bool]] = field(default_factory=list)
    drawn: int = 0
    lineage: tuple[int, ...] = ()  # as of :func:`asyncthink.episode.tree.lineage`
    path: tuple[int, ...] = ()
    workers: dict[int, str] = field(default_factory=dict)  # the colours of its workers, by the i of <FORK-i>

    @property
    def over(self) -> bool:
        return self.state in ("done", "format error", "stopped")

    def line(self) -> Text:
        """The agent in one line: what it returned or answered, else its last line."""
        *_, last = re.split(r"<(?:RETURN|ANSWER)>|\n", "".join(piece for piece, _ in self.pieces).strip())
        said = _TAG.sub(" ", last)
        return Text.assemble(
            (f"{self.title}  ", f"bold {self.colour}"), (f"{self.state} · {self.drawn} tokens  ", "dim"),
            printable(" ".join(said.split())), overflow="ellipsis", no_wrap=True,
        )  # fmt: skip


class LiveLanes:
    """Panels side by side, one per agent, that grow with every token."""

    def __init__(
        self, console: Console, pace: float | None = None, *, keep: bool = True, first: str = "organizer"
    ) -> None:
        self._console = console
        self._pace, self._keep, self._first = pace, keep, first
        self._lanes: dict[int, _Lane] = {}
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._drawn_at = 0.0
        self._step = 0

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.update(self._picture(), refresh=True)
        self._live.stop()
        if self._keep:
            self._console.print(self._picture())

    def show(self, event: Event | TokenEvent) -> None:
        if self._pace and event.step > self._step:
            time.sleep((event.step - self._step) / self._pace)
        self._step = max(self._step, event.step)
        self._take(event)
        if time.perf_counter() - self._drawn_at >= _FRAME:
            self._live.update(self._picture(), refresh=True)
            self._drawn_at = time.perf_counter()

    def _take(self, event: Event | TokenEvent) -> None:
        lane = self._lanes.setdefault(event.agent, self._new_lane(event.agent))
        if isinstance(event, TokenEvent):
            lane.pieces.append((event.text, event.sampled))
            lane.drawn += event.sampled
        elif event.kind == "fork" and event.peer is not None and event.index is not None:
            worker = self._lanes[event.peer] = self._new_lane(event.peer, lane, event.index)
            lane.workers[event.index] = worker.colour
        elif event.kind == "wait":
            lane.state = f"waits for {worker_name((*lane.path, event.index or 0))}"
        elif event.kind == "call":
            lane.state = "waits for a tool"
        elif event.kind in ("join", "tool"):
            lane.state = "thinking"
        elif event.kind != "start":
            lane.state = {"return": "done", "answer": "done", "error": "format error", "stop": "stopped"}[event.kind]

    def _new_lane(self, agent: int, parent: _Lane | None = None, index: int = 0) -> _Lane:
        if parent is None:
            return _Lane(f"agent {agent + 1}" if agent else self._first, colour(agent), lineage=(agent,))
        path = (*parent.path, index)
        return _Lane(worker_name(path), colour(agent), lineage=(*parent.lineage, agent), path=path)

    def _picture(self) -> RenderableType:
        open_ = [lane for lane in self._lanes.values() if self._keep or not lane.over]
        folded = [lane.line() for lane in self._lanes.values() if lane.over and not self._keep]
        if not open_:
            return Group(*folded)
        width, height = self._console.size
        columns = min(len(open_), max(1, width // _LANE_WIDTH))
        rows = -(-len(open_) // columns)
        lines = max(3, min(16, (height - 4 - len(folded)) // rows - 2))
        grid = Table.grid(expand=True)
        for _ in range(columns):
            grid.add_column(ratio=1)
        ordered = sorted(open_, key=lambda lane: lane.lineage)
        panels = [_panel(self._console, lane, width // columns - 4, lines) for lane in ordered]
        for row in _rows(panels, columns):
            grid.add_row(*row)
        return Group(*folded, grid)


def _rows(lanes: list[Panel], columns: int) -> Iterator[list[Panel]]:
    for first in range(0, len(lanes), columns):
        yield lanes[first : first + columns]


def _panel(console: Console, lane: _Lane, width: int, lines: int) -> Panel:
    """The last ``lines`` lines of a lane; inserted text is dim, tags are bold."""
    text, kept = Text(overflow="fold"), 0
    first = len(lane.pieces)
    while first and kept < min(_KEPT, 2 * width * lines):
        first -= 1
        kept += len(lane.pieces[first][0])
    for piece, sampled in lane.pieces[first:]:
        text.append(printable(piece), style="" if sampled else "dim italic")
    text.highlight_regex(_TAG, style=lambda tag: f"bold {_tag_colour(tag, lane)}")
    shown = Text("\n").join(text.wrap(console, max(8, width))[-lines:])
    live = lane.state == "thinking"
    return Panel(
        shown,
        height=lines + 2,
        title=Text(lane.title, style=f"bold {lane.colour}"),
        title_align="left",
        subtitle=Text(f"{lane.state} · {lane.drawn} tokens", style="" if live else "dim"),
        subtitle_align="right",
        border_style=lane.colour if live else "dim",
    )


def _tag_colour(tag: str, lane: _Lane) -> str:
    """The colour of the worker that a tag names, else of the lane."""
    index = tag.strip("</>").partition("-")[2]
    return lane.workers.get(int(index), lane.colour) if index else lane.colour
