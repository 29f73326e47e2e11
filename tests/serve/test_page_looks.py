"""The page in headless Chromium: keyboard, screen readers, phone, light and dark; what its lanes compute."""

from __future__ import annotations

import re
from dataclasses import asdict
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from page_double import PageDouble
from page_driver import CHROMIUM, ask, finished, opened, step

from asyncthink.episode.critical_path import critical_path
from asyncthink.episode.records import Episode, Join, Trace
from asyncthink.view.timeline import timeline

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")


def test_keyboard_alone(page: Any, double: PageDouble) -> None:
    page.keyboard.type("How?")  # the question has the focus
    page.keyboard.press("Enter")
    finished(page)
    names: list[str] = []
    page.locator("#open").focus()
    for _ in range(14):
        outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        names.append(page.evaluate("document.activeElement.id || document.activeElement.className.split(' ')[0]"))
        assert outline != "none" or names[-1] == "question"  # whose form shows the focus
        page.keyboard.press("Tab")
    assert {"open", "new", "dot", "tune", "question", "go"} <= set(names)
    page.locator(".chart [tabindex='0']").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    assert page.locator(".peek h2").inner_text().startswith("worker 1 thinks ")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')").startswith("worker 1 thinks, ")
    page.keyboard.press("Escape")
    assert page.locator(".peek").is_hidden()


def test_names_and_live_regions(page: Any) -> None:
    ask(page)
    finished(page)
    assert page.locator(".reply").get_attribute("aria-live") == "polite"
    assert page.locator(".reply").get_attribute("aria-busy") == "false"
    nameless = page.evaluate(
        "[...document.querySelectorAll('button,input,select,textarea')].filter(e => e.offsetParent && "
        "!e.textContent.trim() && !e.getAttribute('aria-label') && !e.labels?.length).map(e => e.outerHTML)"
    )
    assert nameless == []


@pytest.mark.parametrize("width", [pytest.param(320, marks=pytest.mark.slow), 390])
def test_a_phone_never_scrolls_sideways(browser: Any, double: PageDouble, width: int) -> None:
    for page in opened(browser, double, viewport={"width": width, "height": 700}, has_touch=True, is_mobile=True):
        overflow = "document.documentElement.scrollWidth > innerWidth"
        assert not page.evaluate(overflow)
        page.click("#tune")
        assert not page.evaluate(overflow)
        page.click("#tune")
        ask(page, "How" + "w" * 80)
        finished(page)
        assert not page.evaluate(overflow)
        step(page, 40)
        assert not page.evaluate(overflow)


@pytest.mark.parametrize("scheme", [pytest.param("light", marks=pytest.mark.slow), "dark"])
def test_light_and_dark(browser: Any, double: PageDouble, scheme: str) -> None:
    for page in opened(browser, double, color_scheme=scheme):
        ask(page)
        finished(page)
        paper, ink = page.evaluate("(s => [s.backgroundColor, s.color])(getComputedStyle(document.body))")
        brightness = [sum(map(int, re.findall(r"\d+", colour)[:3])) / 3 for colour in (paper, ink)]
        assert (brightness[0] > brightness[1]) == (scheme == "light")
        assert abs(brightness[0] - brightness[1]) > 180


def test_nested_workers_stand_below_their_parents(page: Any) -> None:
    kinds = [(0, 1, 1), (0, 2, 2), (1, 1, 3), (3, 7, 4), (2, 1, 5)]  # parent, index, number
    order = page.evaluate(
        """kinds => { const episode = new Episode("asyncthink"); episode.agent(0);
        kinds.forEach(([agent, index, peer], step) =>
            episode.take({agent, step, event: {kind: "fork", agent, step, index, peer, text: ""}}));
        return episode.lanes().map(agent => agent.name); }""",
        kinds,
    )
    assert order == ["organizer", "worker 1", "worker 1.1", "worker 1.1.7", "worker 2", "worker 2.1"]


def test_blocks_are_those_of_the_static_timeline(page: Any, double: PageDouble) -> None:
    blocks = page.evaluate(
        """record => { const episode = new Episode(record.mode); itemsOf(record).forEach(item => episode.take(item));
        episode.finish(record); return episode.lanes().map(agent => agent.runs.map(run => [run.kind, run.text])); }""",
        double.episode.to_dict(),
    )
    lanes = timeline(double.episode).lanes
    drawn = [[[segment.kind, segment.text] for segment in lane.segments if segment.text] for lane in lanes]
    assert [[block for block in lane if block[1]] for lane in blocks] == drawn


@given(st.lists(st.randoms(use_true_random=False), min_size=8, max_size=8))
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_critical_path_is_that_of_the_records(page: Any, randoms: list[Random]) -> None:
    trees = [random_tree(random) for random in randoms]
    marked = page.evaluate(
        "trees => trees.map(traces => criticalPath(traces).map(({agent, first, last}) => [agent, first, last]))",
        [[asdict(trace) for trace in traces] for traces in trees],
    )
    assert marked == [[list(stretch) for stretch in critical_path(traces)] for traces in trees]


def random_tree(random: Random) -> list[Trace]:
    """Agents that fork each other at random, each joined at most once, by its parent."""
    numbers = range(1, 1 + random.randrange(6))
    workers = [Trace(k, "worker", parent=random.randrange(k), fork_index=k) for k in numbers]
    traces = [Trace(0, "organizer"), *workers]
    for trace in traces:
        for _ in range(random.randrange(12)):
            trace.add(0, random.random() < 0.7, 0.0, 0)
    for trace in traces[1:]:
        parent = traces[trace.parent or 0]
        trace.fork_at = random.randrange(len(parent.tokens) + 1)
        if trace.fork_at < len(parent.tokens) and random.random() < 0.7:
            at = random.randrange(trace.fork_at, len(parent.tokens))
            if at not in {join.at for join in parent.joins}:
                parent.joins.append(Join(trace.agent, trace.agent, at, 0, "exact"))
    return traces


def test_a_token_without_text_counts(page: Any) -> None:
    record = Episode("Q", "sequential", traces=[Trace(0, "solo")]).to_dict()
    record["traces"][0] |= {"tokens": [5, 6, 2], "sampled": [False, True, True], "steps": [0, 0, 1]}
    record["traces"][0] |= {"pieces": ["Q", "yes", ""], "finish": "end"}
    counted = page.evaluate(
        """record => { const episode = new Episode(record.mode); itemsOf(record).forEach(item => episode.take(item));
        const {end, tokens} = episode.agent(0).last; return [episode.drawn, episode.critical, end, tokens]; }""",
        record,
    )
    assert counted == [2, 2, 2, 2]
