"""Nested episodes in the timeline and on the terminal: lanes in the order of the tree, links between any two agents."""

from __future__ import annotations

import io
import re

from rich.console import Console
from test_html import Page, trace

from asyncthink.episode.records import Episode, Event, Join, TokenEvent, Trace
from asyncthink.view.html import timeline_html
from asyncthink.view.report import print_texts
from asyncthink.view.terminal import LiveLanes, PlainLines
from asyncthink.view.timeline import timeline


def nested() -> Episode:
    """Workers 1 and 2 of the organizer, then worker 1.1, whose critical return goes through worker 1's."""
    organizer = trace(0, "organizer", "Q", [(0, "<FORK-1>a</FORK-1>"), (1, "<FORK-2>b</FORK-2>"), (2, "<JOIN-1>")])
    organizer.add(2, False, 0.0, 9, "mid</JOIN-1>")
    organizer.add(1, True, -0.5, 10, "<ANSWER>yes</ANSWER>")
    organizer.joins.append(Join(1, 1, 4, 0, "exact"))
    organizer.finish = "answer"
    below = {"parent": 0, "fork_index": 1, "fork_at": 2, "finish": "return"}
    first = trace(1, "worker", "w1", [(1, "<FORK-7>c</FORK-7>"), (2, "t"), (3, "<JOIN-7>")], **below)
    first.add(2, False, 0.0, 7, "low</JOIN-7>")
    first.add(1, True, -0.5, 8, "<RETURN>mid")
    first.add(1, True, -0.5, 9, "</RETURN>")
    first.joins.append(Join(7, 3, 4, 0, "exact"))
    second = trace(2, "worker", "w2", [(2, "u"), (3, "v")], parent=0, fork_index=2, fork_at=3, finish="cancelled")
    drawn = [(s, "x") for s in range(2, 7)] + [(7, "<RETURN>low</RETURN>")]
    third = trace(3, "worker", "w3", drawn, parent=1, fork_index=7, fork_at=2, finish="return")
    events = [
        Event("start", 0, 0, 0.0, text="Q"),
        Event("fork", 0, 0, 0.0, 1, 1, "a"),
        Event("fork", 0, 1, 0.0, 2, 2, "b"),
        Event("fork", 1, 1, 0.0, 7, 3, "c"),
        Event("wait", 0, 2, 0.0, 1, 1),
        Event("wait", 1, 3, 0.0, 7, 3),
        Event("stop", 2, 4, 0.0, 2, text="cancelled"),
        Event("return", 3, 7, 0.0, 7, 1, "low"),
        Event("join", 1, 7, 0.0, 7, 3, "low"),
        Event("return", 1, 9, 0.0, 1, 0, "mid"),
        Event("join", 0, 9, 0.0, 1, 1, "mid"),
        Event("answer", 0, 10, 0.0, text="yes"),
    ]
    return Episode(
        "Q", "asyncthink", traces=[organizer, first, second, third], events=events, answer="yes", depth=2,
        step_times=[(s + 1) / 10 for s in range(11)],
    )  # fmt: skip


def test_lanes_stand_in_the_order_of_the_tree() -> None:
    lanes = timeline(nested()).lanes
    assert [(lane.agent, lane.title, lane.level, lane.subquery) for lane in lanes] == [
        (0, "organizer", 0, ""),
        (1, "worker 1", 1, "a"),
        (3, "worker 1.7", 2, "c"),
        (2, "worker 2", 1, "b"),
    ]
    kinds = [(s.kind, s.index, s.peer) for s in lanes[1].segments if s.kind not in ("prompt", "wait")]
    assert kinds == [("fork", 7, 3), ("think", None, None), ("join", 7, 3), ("joined", 7, 3), ("return", None, None)]
    assert [bool(lane.critical) for lane in lanes] == [True, True, True, False]


def test_a_worker_that_may_not_fork_has_no_forks_to_show() -> None:
    flat = nested()
    flat.depth = 1
    assert "fork" not in {segment.kind for segment in timeline(flat).lanes[1].segments}


def test_links_lead_from_lane_to_lane() -> None:
    """Places are those of the lanes, colours those of the agents."""
    drawn = timeline(nested())
    assert {(k.kind, k.parent, k.worker, k.critical) for k in drawn.links} == {
        ("fork", 0, 1, True),
        ("fork", 0, 2, False),
        ("fork", 1, 3, True),
        ("join", 0, 1, True),
        ("join", 1, 3, True),
    }
    page = Page(timeline_html(nested()))
    places = {
        (link["class"].split()[1], *map(int, re.findall(r"--[pw]:(\d+)", link["style"])))
        for link in page.all("div", "link")
    }
    assert places == {("fork", 0, 1), ("fork", 0, 3), ("fork", 1, 2), ("join", 0, 1), ("join", 1, 2)}
    hues = {re.findall(r"--h:(\d+)", lane["style"])[0] for lane in page.all("div", "lane")}
    assert len(hues) == 4
    assert [b.get("style") for b in page.all("b") if "style" in b] == ["padding-left:14px"]


def test_the_terminal_names_agents_by_their_place_in_the_tree() -> None:
    written = io.StringIO()
    with PlainLines(Console(file=written, width=80)) as lines:
        for event in nested().events:
            lines.show(event)
    out = written.getvalue()
    assert "worker 1    forks worker 1.7: c" in out and "worker 1    waits for worker 1.7" in out
    assert "worker 1.7  returns: low" in out and "organizer   joins worker 1: mid" in out
    assert "worker 2    stops: cancelled" in out


def test_live_lanes_stand_in_the_order_of_the_tree() -> None:
    written = io.StringIO()
    console = Console(file=written, width=140, height=30, force_terminal=True, color_system=None)
    lanes = LiveLanes(console)
    for event in nested().events[:8]:
        lanes._take(event)
    lanes._take(TokenEvent(3, "<RETURN>low</RETURN>", True, 7))
    console.print(lanes._picture())
    out = written.getvalue()
    titles = re.findall(r"─ (organizer|worker [\d.]+) ─", out)
    assert titles == ["organizer", "worker 1", "worker 1.7", "worker 2"]
    assert "waits for worker 1.7" in out and "stopped" in out


def test_texts_without_an_answer_have_names() -> None:
    episode = nested()
    episode.answer, episode.finish = None, "timeout"
    written = io.StringIO()
    print_texts(Console(file=written, width=80), episode)
    assert "worker 1.7" in written.getvalue()


def test_names_of_agents_alone() -> None:
    alone = Episode("Q", "parallel", traces=[Trace(k, "solo") for k in range(2)])
    assert [lane.title for lane in timeline(alone).lanes] == ["agent 1", "agent 2"]
