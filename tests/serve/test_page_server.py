"""The page on the real server with the shipped checkpoint."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from page_driver import CHROMIUM, ask, finished, lanes, playwright

import asyncthink
from asyncthink import ForkJoinSampler
from asyncthink.engine.async_engine import AsyncEngine
from asyncthink.serve.server import listen, serve
from asyncthink.serve.settings import Settings

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
PUZZLE = "47 from 3 5 7 8 9 10 12"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A server in a thread of the test."""
    engine = AsyncEngine(ForkJoinSampler(asyncthink.checkpoint_path("countdown"), num_pages=512))
    sock = listen("127.0.0.1", 0)
    servers: list[Any] = []
    started = {"ready": servers.append}
    thread = threading.Thread(
        target=serve, args=(engine, Settings("countdown", api_key="secret"), sock), kwargs=started
    )
    thread.start()
    yield f"http://127.0.0.1:{sock.getsockname()[1]}/"
    servers[0].should_exit = True
    thread.join()


@pytest.fixture
def page(address: str) -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(120_000)
        complaints: list[str] = []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(address)
        playwright.expect(page.locator("#note")).to_contain_text("API key")
        page.click("#tune")
        page.fill("[name=key]", "secret")
        page.select_option("[name=earlier]", "")
        page.fill("[name=temperature]", "0")
        playwright.expect(page.locator("#model")).to_have_text("countdown")
        yield page
        assert complaints == []
        browser.close()


@pytest.mark.slow
def test_a_whole_episode(page: Any) -> None:
    ask(page, PUZZLE)
    finished(page)
    record = page.evaluate("turns[0].record")
    assert record["answer"].strip() == page.locator(".reply").inner_text()
    is_shown(page, record)
    assert page.locator(".run").count() > 1


def is_shown(page: Any, record: dict[str, Any]) -> None:
    assert lanes(page) == ["organizer", *(f"worker {trace['fork_index']}" for trace in record["traces"][1:])]
    assert len(record["traces"]) > 1
    for number, trace in enumerate(record["traces"]):
        assert page.locator(".agent pre").nth(number).text_content() == "".join(trace["pieces"])


def test_few_tokens_and_an_error(page: Any) -> None:
    page.fill("[name=max_tokens]", "30")
    ask(page, PUZZLE)
    finished(page)
    is_shown(page, page.evaluate("turns[0].record"))
    assert page.locator(".lane .num").first.inner_text() == "out of tokens · 30 tokens"
    assert page.locator(".said .chip").first.inner_text() == "no answer (budget)"
    page.fill("[name=max_tokens]", "100000000")
    ask(page, PUZZLE)
    playwright.expect(page.locator(".turn:not(.running)")).to_have_count(2)
    assert "max_tokens" in page.locator(".chip.error").last.inner_text()
    assert page.input_value("#question") == PUZZLE
