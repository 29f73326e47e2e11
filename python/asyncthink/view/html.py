"""An episode as one self-contained HTML page, with a lane for each agent."""

from __future__ import annotations

from html import escape

from asyncthink.episode.records import Episode
from asyncthink.view.page import page
from asyncthink.view.timeline import Lane, Link, Segment, Timeline, timeline

#: Of agents, by their numbers, in degrees.
HUES = (243, 170, 36, 330, 205, 120, 285, 60)
_GREY = "--h:230;filter:saturate(.25)"
_LEGEND = (
    ("", "thinking", "hsl(243 45% 70%)"),
    ("", "fork or join tag, in the worker's colour", "hsl(170 50% 55%)"),
    ("", "waiting", "repeating-linear-gradient(135deg,var(--hatch) 0 3px,#0000 3px 8px)"),
    ("l-path", "critical path", "var(--path)"),
)
_VERBS = {
    "prompt": "was told",
    "think": "thinks",
    "fork": "forks",
    "join": "asks to join",
    "joined": "is given",
    "tool": "is told by a tool",
    "answer": "answers",
    "return": "returns",
    "wait": "waits",
}
_ENDS = {
    "error": "ended by a format error",
    "end": "stopped without an end tag",
    "budget": "out of tokens",
    "cancelled": "cut off",
    "timeout": "out of time",
    "out_of_pages": "out of pages",
}


def timeline_html(episode: Episode, sequential: Episode | None = None) -> str:
    """A self-contained page that shows ``episode`` over its steps; ``sequential`` adds a one-agent episode below.

    Each agent has a lane. Its blocks are tokens of one kind (hover, focus or tap shows their text). Arrows are forks
    and joins, hatched blocks are waiting, and the critical path is underlined. ``episode.meta["solved"]`` (bool) is the
    verdict, ``episode.meta["model"]`` the name in the first line. All text is escaped; nothing is loaded.

    Raises ValueError if a trace lacks the text or the step of a token.

    >>> from asyncthink.episode.records import Episode
    >>> timeline_html(Episode("1 + 1?", "asyncthink")).startswith("<!doctype html>")
    True
    """
    drawn = timeline(episode)
    versus = timeline(sequential) if sequential else None
    scale = _Scale(drawn, versus)
    lanes = "".join(_lane(scale, lane, drawn, versus=False) for lane in drawn.lanes)
    places = {lane.agent: place for place, lane in enumerate(drawn.lanes)}
    links = "".join(_link(scale, link, places) for link in drawn.links)
    alone = "".join(_lane(scale, lane, versus, versus=True) for lane in versus.lanes) if versus else ""
    body = [
        _header(episode),
        _figures(episode, sequential),
        f'<section class="chart" aria-label="timeline">{links}{lanes}</section>',
        f'<section class="chart versus" aria-label="one agent alone">{alone}</section>' if alone else "",
        _axis(scale, drawn),
        '<p class="legend">' + "".join(_legend(*entry) for entry in _LEGEND) + "<em>Hover or tap to read.</em></p>",
        "".join(_transcript(lane) for lane in drawn.lanes),
    ]
    return page(escape(f"{episode.question[:60]} - asyncthink"), "\n".join(body))


class _Scale:
    """Maps steps to percent of the width."""

    def __init__(self, drawn: Timeline, versus: Timeline | None) -> None:
        self.first = min(drawn.first, versus.first) if versus else drawn.first
        self.last = max(drawn.last, versus.last) if versus else drawn.last

    def __call__(self, step: float) -> float:
        return 100.0 * (step - self.first) / max(1, self.last - self.first)

    def box(self, begin: float, end: float) -> str:
        return f"left:{self(begin):.3f}%;width:{self(end) - self(begin):.3f}%"


def _hue(agent: int) -> int:
    return HUES[agent % len(HUES)]


def _header(episode: Episode) -> str:
    solved = episode.meta.get("solved")
    verdict = ("open", "not checked") if solved is None else ("good", "solved") if solved else ("bad", "not solved")
    chips = [verdict, *(("bad", error) for error in episode.format_errors)]
    model = f" · {escape(str(episode.meta['model']))}" if episode.meta.get("model") else ""
    answer = escape(" ".join(episode.answer.split())) if episode.answer is not None else "no answer"
    name = "long" if len(episode.question) > 90 else ""
    return (
        f'<p class="brand">asyncthink{model} · {episode.context} context · {episode.join_mode} join · '
        f'seed {episode.seed}</p><h1 class="{name}">{escape(episode.question)}</h1>'
        '<div class="answer">'
        + "".join(f'<span class="chip {tone}">{escape(text)}</span>' for tone, text in chips)
        + f"<code>{answer}</code></div>"
    )


def _figures(episode: Episode, sequential: Episode | None) -> str:
    path, total = episode.critical_path_tokens, episode.total_tokens
    figures = [("path", "critical path", f"{path:,} <small>tokens</small>", f"of {total:,} drawn by all agents")]
    if sequential:
        alone = sequential.critical_path_tokens
        change = f"{path / alone - 1:+.0%}".replace("-", "−") if alone else "-"
        figures.append(("", "against one agent", f"{change} <small>tokens</small>", f"which drew {alone:,} in a row"))
    steps = f"{len(episode.step_times)} steps"
    wall = f"one agent {_seconds(sequential.wall_seconds)}" if sequential else steps
    figures += [
        ("", "wall clock", _seconds(episode.wall_seconds), wall),
        ("", "at work on average", f"{episode.concurrency:.2f} <small>agents</small>", f"pool of {episode.pool}"),
        (
            "",
            "forks, joins",
            f"{episode.forks} <small>and</small> {episode.joins}",
            f"{len(episode.traces)} agents in all",
        ),
        (
            "",
            "prefix shared",
            _bytes(episode.kv_bytes_shared),
            f"{_bytes(episode.kv_bytes_copied)} copied"
            + (f", {_bytes(episode.state_bytes_copied)} of states" if episode.state_bytes_copied else ""),
        ),
    ]
    cells = (f'<div class="{tone}"><dt>{dt}</dt><dd>{dd}</dd><p>{note}</p></div>' for tone, dt, dd, note in figures)
    return f'<dl class="figures">{"".join(cells)}</dl>'


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 0.1 else f"{value * 1000:.0f} ms"


def _bytes(value: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if value >= size:
            return f"{value / size:.1f} {unit}"
    return f"{value} B"


def _lane(scale: _Scale, lane: Lane, drawn: Timeline, *, versus: bool) -> str:
    style = _GREY if versus else f"--h:{_hue(lane.agent)}"
    title = "one agent alone" if versus else lane.title
    note = escape(" - ".join(filter(None, (lane.subquery, _ENDS.get(lane.finish)))))
    segments = "".join(_segment(scale, lane, title, segment, drawn) for segment in lane.segments)
    indent = f' style="padding-left:{14 * (lane.level - 1)}px"' if lane.level > 1 else ""
    runs = "".join(f'<div class="run" style="{scale.box(*run)}"></div>' for run in ([] if versus else lane.critical))
    return (
        f'<div class="lane" style="{style}"><div class="cap"><b{indent}>{escape(title)}</b>'
        f'<span class="sub">{note}</span><span class="num">{lane.drawn} tokens</span></div>'
        f'<div class="track">{segments}{runs}</div></div>'
    )


def _segment(scale: _Scale, lane: Lane, title: str, segment: Segment, drawn: Timeline) -> str:
    hue = f";--h:{_hue(segment.peer)}" if segment.peer else ""
    steps = (
        f"step {segment.begin}" if segment.end - segment.begin <= 1 else f"steps {segment.begin} to {segment.end - 1}"
    )
    facts = [steps]
    if (seconds := drawn.seconds(segment.begin)) is not None:
        facts.append(f"at {_seconds(seconds)}")
    if segment.tokens:
        inserted = f", {segment.forced} inserted by the guide" if segment.forced else ""
        facts.insert(0, f"{segment.tokens} token{'s' * (segment.tokens > 1)}{inserted}")
    label = escape(f"{title} {_VERBS[segment.kind]} | {', '.join(facts)}")
    text = escape(segment.text)
    if segment.kind in ("prompt", "joined", "tool"):
        prompt = segment.kind == "prompt"
        name, mark = ("joined", segment.index) if segment.kind == "joined" else ("told", "")
        step = lane.segments[1].begin if prompt and len(lane.segments) > 1 else segment.end
        place = f"left:{scale(step):.3f}%{hue}"
        head = f'<button class="dot {name}" style="{place}" aria-label="{label}">'
        return f"{head}{mark}<template>{text}</template></button>"
    shown = "<b>waits</b>" if segment.kind == "wait" else text.strip()
    kind = "answer-seg" if segment.kind == "answer" else segment.kind
    return (
        f'<button class="seg {kind}" style="{scale.box(segment.begin, segment.end)}{hue}" aria-label="{label}">'
        f"<span>{shown}</span><template>{text}</template></button>"
    )


def _link(scale: _Scale, link: Link, places: dict[int, int]) -> str:
    style = f"--h:{_hue(link.worker)};--p:{places[link.parent]};--w:{places[link.worker]}"
    tone = f"{link.kind} crit" if link.critical else link.kind
    held = ""
    if link.kind == "join" and link.step > link.ready:
        held = f'<div class="held" style="{style};{scale.box(link.ready, link.step)}"></div>'
    return f'<div class="link {tone}" style="{style};left:{scale(link.step):.3f}%"></div>{held}'


def _axis(scale: _Scale, drawn: Timeline) -> str:
    span = max(1, scale.last - scale.first)
    size = next(m * 10**e for e in range(9) for m in (1, 2, 5) if span / (m * 10**e) <= 9)
    steps = [s for s in range(-(-scale.first // size) * size, scale.last, size) if scale.last - s > size * 0.6]
    ticks = "".join(_tick(scale, drawn, step, " steps" if k == 0 else "", "") for k, step in enumerate(steps))
    return f'<div class="axis">{ticks}{_tick(scale, drawn, scale.last, " steps", "end")}</div>'


def _tick(scale: _Scale, drawn: Timeline, step: int, unit: str, name: str) -> str:
    seconds = drawn.seconds(step) if step <= drawn.last else None
    below = "" if seconds is None else f"<br>{_seconds(seconds)}"
    return f'<i class="{name}" style="left:{scale(step):.3f}%">{step}{unit}{below}</i>'


def _legend(name: str, text: str, colour: str) -> str:
    return f'<span class="{name}" style="--k:{colour}">{text}</span>'


def _transcript(lane: Lane) -> str:
    spans = "".join(
        f'<span class="p-{s.kind}"{f" style=--h:{_hue(s.peer)}" if s.peer else ""}>{escape(s.text)}</span>'
        for s in lane.segments
        if s.text
    )
    opened = " open" if lane.agent == 0 else ""
    return (
        f'<details style="--h:{_hue(lane.agent)}"{opened}><summary>{escape(lane.title)}'
        f"<small>{lane.drawn} tokens, everything it read and wrote</small></summary><pre>{spans}</pre></details>"
    )
