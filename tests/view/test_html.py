"""The timeline: the layout of a hand-written episode, and a page that is well formed, safe and offline."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncthink.episode.critical_path import Stretch, critical_path
from asyncthink.episode.records import Episode, Event, Join, Trace
from asyncthink.view.html import timeline_html
from asyncthink.view.timeline import timeline

HOSTILE = "</template></script><script>alert(1)</script><img src=x onerror=alert(1)>\"'&"


def trace(agent: int, role: str, prompt: str, drawn: Sequence[tuple[int, str]], **more: object) -> Trace:
    """A trace with a prompt of one piece, at the step before the first draw, and the ``drawn`` (step, piece)."""
    record = Trace(agent, role, **more)  # type: ignore[arg-type]
    record.add(0, False, 0.0, max(0, drawn[0][0] - 1), prompt)
    for step, piece in drawn:
        record.add(1, True, -0.5, step, piece)
    record.text = "".join(record.pieces[1:])
    return record


def episode() -> Episode:
    """Two workers: the organizer thinks on, waits for worker 1 (critical), then joins worker 2, which was done."""
    organizer = trace(
        0, "organizer", "Q", list(enumerate(["<FORK", "-1>a</FORK-1>", "<FORK-2>b", "</FORK-2> ", "mine", "<JOIN-1>"]))
    )
    organizer.add(2, False, 0.0, 9, f"one {HOSTILE}")
    organizer.add(2, False, 0.0, 9, "</JOIN-1>")
    organizer.joins.append(Join(1, 1, 7, 1, "append", (2, 3)))
    organizer.add(1, True, -0.5, 10, "<JOIN-2>")
    organizer.add(2, False, 0.0, 10, "two</JOIN-2>")
    organizer.joins.append(Join(2, 2, 10, 0, "exact"))
    organizer.add(1, True, -0.5, 11, "<ANSWER>yes")
    organizer.add(1, True, -0.5, 12, "</ANSWER>")
    organizer.finish = "answer"
    first = trace(
        1, "worker", "w1", [(s, p) for s, p in enumerate(["t", "h", "i", "n", "k", "<RETURN>", "one", "</RETURN>"], 2)],
        parent=0, fork_index=1, fork_at=3, finish="return",
    )  # fmt: skip
    second = trace(2, "worker", "w2", [(4, "<RETURN>"), (5, "two</RETURN>")], parent=0, fork_index=2, fork_at=5)
    events = [Event("fork", 0, 1, 0.2, 1, 1, f"task {HOSTILE}"), Event("fork", 0, 3, 0.4, 2, 2, "task b")]
    return Episode(
        f"Q {HOSTILE}", "asyncthink", join_mode="append", traces=[organizer, first, second], events=events,
        answer=f"yes {HOSTILE}", wall_seconds=1.3, step_times=[(s + 1) / 10 for s in range(13)],
        kv_bytes_shared=2_500_000, kv_bytes_copied=640, meta={"solved": True},
    )  # fmt: skip


def alone() -> Episode:
    solo = trace(0, "solo", "Q", [(s, "x") for s in range(30)] + [(30, "<ANSWER>no</ANSWER>")])
    return Episode("Q", "sequential", traces=[solo], wall_seconds=3.0)


class Page(HTMLParser):
    """Collects elements, and fails on tags left open or closed twice."""

    VOID = ("meta", "br", "img", "link", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def all(self, tag: str, name: str = "") -> list[dict[str, str]]:
        return [a for t, a in self.elements if t == tag and (not name or name in a.get("class", "").split())]


def test_segments_follow_the_tags_and_the_waiting() -> None:
    organizer, first, second = timeline(episode()).lanes
    assert [(s.kind, s.begin, s.end, s.index) for s in organizer.segments] == [
        ("prompt", 0, 1, None),
        ("fork", 0, 2, 1),
        ("fork", 2, 4, 2),
        ("think", 4, 5, None),
        ("join", 5, 6, 1),
        ("wait", 6, 9, None),
        ("joined", 9, 10, 1),
        ("join", 10, 11, 2),
        ("joined", 10, 11, 2),
        ("answer", 11, 13, None),
    ]
    assert [s.kind for s in first.segments] == ["prompt", "think", "return"]
    assert organizer.segments[1].text == "<FORK-1>a</FORK-1>" and organizer.drawn == 9
    assert (first.title, second.title) == ("worker 1", "worker 2") and second.subquery == "task b"


def test_links_know_when_a_return_was_ready_and_when_it_was_taken() -> None:
    links = timeline(episode()).links
    assert [(k.kind, k.parent, k.worker, k.step, k.ready, k.critical) for k in links] == [
        ("join", 0, 1, 10, 10, True),
        ("join", 0, 2, 10, 6, False),
        ("fork", 0, 1, 2, 2, True),
        ("fork", 0, 2, 4, 4, False),
    ]


def test_critical_path_goes_through_the_slow_worker() -> None:
    ep = episode()
    assert critical_path(ep.traces) == [Stretch(0, 0, 3), Stretch(1, 0, 9), Stretch(0, 7, 13)]
    assert ep.critical_path_tokens == 2 + 8 + 3
    assert [lane.critical for lane in timeline(ep).lanes] == [[(0, 2), (10, 13)], [(2, 10)], []]


def slow_clock(traces: Sequence[Trace], agent: int, stop: int | None) -> int:
    """The definition, written recursively."""
    own = traces[agent]
    clock = 0 if own.parent is None else slow_clock(traces, own.parent, own.fork_at)
    waits = {join.at: join.worker for join in own.joins}
    for position, drawn in enumerate(own.sampled[:stop]):
        if position in waits:
            clock = max(clock, slow_clock(traces, waits[position], None))
        clock += drawn
    return clock


@settings(max_examples=200)
@given(st.lists(st.tuples(st.sampled_from("tfj"), st.integers(1, 9)), max_size=12), st.randoms(use_true_random=False))
def test_critical_path_is_what_the_definition_says(script: list[tuple[str, int]], rng) -> None:
    organizer = Trace(0, "organizer")
    traces, live = [organizer], []
    for what, size in script:
        for _ in range(size):
            organizer.add(1, True, 0.0, 0)
        if what == "f":
            worker = Trace(len(traces), "worker", 0, len(traces), len(organizer.tokens))
            for _ in range(rng.randint(1, 30)):
                worker.add(1, True, 0.0, 0)
            traces.append(worker)
            live.append(worker.agent)
        elif what == "j" and live:
            joined = live.pop(rng.randrange(len(live)))
            organizer.joins.append(Join(joined, joined, len(organizer.tokens), 1, "exact"))
            organizer.add(2, False, 0.0, 0)
    path = critical_path(traces)
    assert sum(sum(traces[a].sampled[i:j]) for a, i, j in path) == slow_clock(traces, 0, None)


def test_the_page_is_well_formed_and_needs_nothing_outside_itself() -> None:
    text = timeline_html(episode(), alone())
    page = Page(text)
    assert not re.search(r"https?:|//[a-z]|url\(|@import|src=\"|<link|<iframe", text.replace("src=x onerror", ""))
    assert len(page.all("div", "lane")) == 4 and len(page.all("button", "fork")) == 2
    assert len(page.all("div", "link")) == 4 and len(page.all("div", "held")) == 1
    assert len(page.all("div", "run")) == 3 and len(page.all("button", "wait")) == 1
    assert "prefers-color-scheme:dark" in text and 'name="viewport"' in text


def test_text_is_escaped_wherever_it_appears() -> None:
    text = timeline_html(episode(), alone())
    page = Page(text)
    assert len(page.all("script")) == 1 and page.all("img") == []
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert text.count("&lt;script&gt;alert(1)") >= 4  # question, answer, sub-query, inserted text


def test_the_figures_of_the_header() -> None:
    text = timeline_html(episode(), alone())
    for figure in (
        "13 <small>tokens",
        "of 19 drawn",
        "−58%",
        "31 in a row",
        "1.46 <small>agents",
        "2.5 MB",
        "640 B copied",
    ):
        assert figure in text
    assert "1.30 s" in text and "one agent 3.00 s" in text and ">solved<" in text


@pytest.mark.parametrize(("meta", "verdict"), [({}, "not checked"), ({"solved": False}, "not solved")])
def test_verdicts_and_errors_are_shown(meta: dict[str, bool], verdict: str) -> None:
    ep = episode()
    ep.meta, ep.answer, ep.format_errors = meta, None, ["worker 2: nested tag: <FORK-3>"]
    text = timeline_html(ep)
    assert f">{verdict}<" in text and "no answer" in text and "nested tag: &lt;FORK-3&gt;" in text
    assert "in a row" not in text


def test_everything_lies_inside_the_picture() -> None:
    page = Page(timeline_html(episode(), alone()))
    for _, attributes in page.elements:
        place = re.search(r"left:(-?[\d.]+)%(?:;width:(-?[\d.]+)%)?", attributes.get("style", ""))
        if place:
            left, width = float(place[1]), float(place[2] or 0)
            assert 0 <= left <= 100 and width >= 0 and left + width <= 100.01


def test_an_episode_of_nothing_and_of_parallel_traces() -> None:
    Page(timeline_html(Episode("Q", "asyncthink")))
    ep = Episode("Q", "parallel", traces=[trace(k, "solo", "Q", [(0, "x"), (1, "y" * k)]) for k in range(3)])
    page = Page(timeline_html(ep))
    assert len(page.all("div", "lane")) == 3 and page.all("div", "run") == []


def test_a_trace_without_text_is_refused() -> None:
    ep = episode()
    ep.traces[1].pieces = []
    with pytest.raises(
        ValueError, match=r"agent 1: expected as many sampled, steps, pieces as tokens, got \[9, 9, 9, 0\]"
    ):
        timeline_html(ep)


def test_an_episode_survives_its_file(tmp_path) -> None:
    episode().save(tmp_path / "episode.json")
    assert timeline_html(Episode.load(tmp_path / "episode.json")) == timeline_html(episode())
