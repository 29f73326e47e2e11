"""The page in headless Chromium: ask, watch, stop, replay; a model's text stays text."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from page_double import PageDouble
from page_driver import CHROMIUM, HOSTILE, ask, finished, lanes, playwright, step

from asyncthink.serve.page import PAGE, PAGE_HEADERS

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")


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
