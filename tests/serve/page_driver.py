"""The page in headless Chromium, and what people do on it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from page_double import PageDouble

from asyncthink.episode.records import Episode, Event, TokenEvent
from scripted import END, sampler

playwright: Any = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
playwright.expect.set_options(timeout=60_000)  # what never comes fails; what comes late does not
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
HOSTILE = "<script>window.hacked=1</script><img src=x onerror='window.hacked=1'>"
BEFORE = "O:How?\n"
ORGANIZER = f"<FORK-1>count</FORK-1> <FORK-2>{HOSTILE}</FORK-2> {HOSTILE} <JOIN-1>"
RETURNS = ("four", HOSTILE)
REST = ("", f" so <JOIN-2>{RETURNS[1]}</JOIN-2><ANSWER>4 & {HOSTILE}</ANSWER>{END}")
FIRST = f"one two three <RETURN>{RETURNS[0]}</RETURN>"
SECOND = f"x{HOSTILE}" * 2 + f"<RETURN>{RETURNS[1]}</RETURN>"


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
