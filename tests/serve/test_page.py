"""The page in headless Chromium: ask, watch, stop, replay; dark, phone, keyboard; a model's text stays text."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from page_double import PageDouble

from asyncthink.episode.critical_path import critical_path
from asyncthink.episode.records import Episode, Event, Join, TokenEvent, Trace
from asyncthink.serve.page import PAGE, PAGE_HEADERS
from asyncthink.view.timeline import timeline
from scripted import END, sampler

playwright = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
playwright.expect.set_options(timeout=60_000)  # what never comes fails; what comes late does not
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
pytestmark = needs_chromium

HOSTILE = "<script>window.hacked=1</script><img src=x onerror='window.hacked=1'>"
BEFORE = "O:How?\n"
ORGANIZER = f"<FORK-1>count</FORK-1> <FORK-2>{HOSTILE}</FORK-2> {HOSTILE} <JOIN-1>"
RETURNS = ("four", HOSTILE)
REST = ("", f" so <JOIN-2>{RETURNS[1]}</JOIN-2><ANSWER>4 & {HOSTILE}</ANSWER>{END}")
FIRST = f"one two three <RETURN>{RETURNS[0]}</RETURN>"
SECOND = f"x{HOSTILE}" * 2 + f"<RETURN>{RETURNS[1]}</RETURN>"


@pytest.fixture(scope="module")
def recorded() -> tuple[list[Event | TokenEvent], Episode]:
    """An episode with two workers, whose events a real sampler gave."""
    scripts = [
        f"{BEFORE}{ORGANIZER}{RETURNS[0]}</JOIN-1>{REST[1]}",
        f"{BEFORE}{ORGANIZER.partition(' ')[0]}W:{FIRST}",
        f"{BEFORE}{ORGANIZER.partition('</FORK-2>')[0]}</FORK-2>W:{SECOND}",
    ]
    with sampler(scripts, num_pages=1024).stream("How?") as stream:
        items = list(stream)
    assert (stream.episode.answer, stream.episode.format_errors) == (f"4 & {HOSTILE}", [])
    return items, stream.episode


@pytest.fixture
def double(recorded: tuple[list[Event | TokenEvent], Episode]) -> Iterator[PageDouble]:
    with PageDouble(*recorded) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, double: PageDouble) -> Iterator[Any]:
    """The page, opened. No test leaves an error in the console, and no text of a model has run."""
    yield from opened(browser, double)


def opened(browser: Any, double: PageDouble, **options: Any) -> Iterator[Any]:
    context = browser.new_context(reduced_motion="reduce", **options)
    context.set_default_timeout(60_000)
    page = context.new_page()
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(double.url)
    playwright.expect(page.locator("#model")).to_have_text("double")
    yield page
    assert page.evaluate("window.hacked") is None
    expected = "the server responded with a status of"  # Chromium's own line for an error that the page shows
    assert [text for text in complaints if expected not in text] == []
    context.close()


def ask(page: Any, question: str = "How?") -> None:
    page.fill("#question", question)
    page.keyboard.press("Enter")


def finished(page: Any) -> None:
    page.wait_for_selector(".turn:last-child:not(.running)")


def lanes(page: Any) -> list[str]:
    return page.locator(".lane .cap b").all_inner_texts()


def step(page: Any, value: int) -> None:
    page.locator(".controls input").evaluate(
        "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')); }", value
    )


def test_the_document_is_whole_and_loads_nothing() -> None:
    text = PAGE.decode()
    assert not re.search(r"""(?:src|href)=["'](?!data:)""", text)
    assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|eval\(|url\(", text)
    assert "/*style*/" not in text
    assert "/*script*/" not in text
    assert "default-src 'none'" in PAGE_HEADERS["content-security-policy"]


def test_ask_watch_and_read_the_answer(page: Any, double: PageDouble) -> None:
    double.hold = len(double.items) * 2 // 3
    ask(page)
    playwright.expect(page.locator(".lane")).to_have_count(3)
    assert lanes(page) == ["organizer", "worker 1", "worker 2"]
    assert page.locator(".link.fork").count() == 2
    assert page.locator(".status").inner_text().endswith("at work")
    double.go_on.set()
    finished(page)
    assert page.locator(".reply").inner_text() == double.episode.answer
    assert page.locator(".link.join").count() == 2
    assert page.locator(".run").count() >= 2
    assert page.locator(".figures .path dd").inner_text() == f"{double.episode.critical_path_tokens} tokens"
    summary = f"3 agents, {double.episode.critical_path_tokens} tokens on the critical path of "
    assert page.locator(".work > summary").inner_text().startswith(f"{summary}{double.episode.total_tokens}, ")
    for number, trace in enumerate(double.episode.traces):
        assert page.locator(".agent pre").nth(number).text_content() == "".join(trace.pieces)


def test_what_is_streamed_is_what_the_record_says(page: Any, double: PageDouble) -> None:
    double.hold = len(double.items)
    ask(page)
    playwright.expect(page.locator(".reply")).not_to_be_empty()
    streamed = page.locator(".agent pre").all_text_contents()
    path = page.locator(".figures .path dd").inner_text()
    double.go_on.set()
    finished(page)
    assert page.locator(".figures .path dd").inner_text() == path
    prompts = ["".join(p for p, s in zip(t.pieces, t.sampled, strict=True) if not s and p[:2] in ("O:", "W:"))
               for t in double.episode.traces]  # fmt: skip
    for whole, seen, prompt in zip(page.locator(".agent pre").all_text_contents(), streamed, prompts, strict=True):
        assert whole.removeprefix(prompt).endswith(seen[len(seen) // 2 :])


def test_a_conversation_sends_the_turns_before(page: Any, double: PageDouble) -> None:
    page.click("#tune")
    page.fill("[name=system]", "Be brief.")
    page.select_option("[name=mode]", "asyncthink")
    page.fill("[name=pool]", "3")
    page.fill("[name=temperature]", "0.5")
    ask(page, "How?")
    finished(page)
    ask(page, "And why?")
    playwright.expect(page.locator(".turn:not(.running)")).to_have_count(2)
    system = {"role": "system", "content": "Be brief."}
    first, second = double.requests
    assert first["asyncthink"] == {"mode": "asyncthink", "pool": 3, "record": True}
    assert (first["temperature"], first["stream"], first["model"]) == (0.5, True, "double")
    assert "max_tokens" not in first
    assert first["messages"] == [system, {"role": "user", "content": "How?"}]
    answer = {"role": "assistant", "content": double.episode.answer}
    assert second["messages"] == [*first["messages"], answer, {"role": "user", "content": "And why?"}]
    page.click("#new")
    ask(page, "Anew?")
    finished(page)
    assert double.requests[-1]["messages"] == [system, {"role": "user", "content": "Anew?"}]


def test_stop(page: Any, double: PageDouble) -> None:
    double.hold = len(double.items) // 2
    ask(page)
    page.wait_for_selector(".lane")
    page.click("#stop")
    finished(page)
    assert page.locator(".said .chip").first.inner_text() == "stopped"
    assert double.left.wait(60)
    assert page.evaluate("document.activeElement.id") == "question"
    double.go_on.set()
    ask(page, "Again?")
    playwright.expect(page.locator(".turn:not(.running)")).to_have_count(2)
    assert double.requests[-1]["messages"] == [{"role": "user", "content": "Again?"}]


def test_errors_of_the_server_are_shown(page: Any, double: PageDouble) -> None:
    double.error = (429, f"queue: 64 requests wait {HOSTILE}")
    ask(page)
    finished(page)
    assert page.locator(".chip.error").inner_text() == double.error[1]
    assert page.input_value("#question") == "How?"


@pytest.mark.parametrize("said", ["the model broke", ""])
def test_a_stream_that_breaks_off_is_told(page: Any, double: PageDouble, said: str) -> None:
    double.broken = said
    ask(page)
    finished(page)
    expected = said or "The server broke off in the middle of its answer."
    assert page.locator(".said .chip").all_inner_texts() == ["failed", expected]
    assert "cut off" in page.locator(".agent summary").first.inner_text()
    assert page.locator(".controls button").first.inner_text() == "Replay"


@pytest.mark.slow
def test_a_key_is_asked_for_and_sent(browser: Any, double: PageDouble) -> None:
    double.key = "secret"
    context = browser.new_context()
    page = context.new_page()
    page.goto(double.url)
    page.wait_for_selector("#note:not([hidden])")
    assert "API key" in page.inner_text("#note")
    page.click("#tune")
    page.fill("[name=key]", "secret")
    ask(page)
    finished(page)
    assert page.locator(".reply").inner_text() == double.episode.answer
    assert page.evaluate("[...Object.keys(localStorage), ...Object.keys(sessionStorage), document.cookie]") == [""]
    context.close()


def test_replay_of_a_saved_episode(page: Any, double: PageDouble, tmp_path: Path) -> None:
    double.episode.save(tmp_path / "saved.json")
    page.set_input_files("#file", tmp_path / "saved.json")
    finished(page)
    assert page.locator(".turn > h2").inner_text() == "How?"
    assert page.evaluate("document.activeElement.textContent") == "Replay"
    whole = page.locator(".agent pre").all_text_contents()
    assert whole == ["".join(trace.pieces) for trace in double.episode.traces]
    step(page, 12)
    assert lanes(page) == ["organizer"]
    assert page.locator(".run").count() == 0
    assert page.locator(".controls input").get_attribute("aria-valuetext").startswith("step 12 of ")
    page.select_option(".controls select", "300")
    page.locator(".controls button").first.click()
    playwright.expect(page.locator(".controls button").first).to_have_text("Replay")
    assert page.locator(".agent pre").all_text_contents() == whole
    assert page.locator(".run").count() >= 2
    with page.expect_download() as download:
        page.get_by_role("button", name="Save").click()
    assert json.loads(Path(download.value.path()).read_text()) == json.loads((tmp_path / "saved.json").read_text())


def test_files_of_something_else_are_named(page: Any, tmp_path: Path) -> None:
    for name, text in {"a.json": "{", "b.json": "{}", "c.json": '{"traces": [{"agent": 0, "tokens": [1]}]}'}.items():
        (tmp_path / name).write_text(text)
        page.set_input_files("#file", tmp_path / name)
        playwright.expect(page.locator("#note")).to_contain_text(f"{name} is not a saved episode: ")


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
