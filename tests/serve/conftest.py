"""One server for the tests of a file; one browser for those of the page."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from page_double import Item, PageDouble

import tiny_models as tm
from asyncthink import ForkJoinSampler
from asyncthink.episode.records import Episode
from scripted import PROMPTS
from served import Served, served


@pytest.fixture(scope="module")
def tiny() -> Iterator[Served]:
    """A tiny random model that often organizes."""
    model, tok = tm.organizer()
    sampler = ForkJoinSampler(model, tok, prompts=PROMPTS, num_pages=256)
    with served(sampler) as server:
        yield server


@pytest.fixture(scope="module")
def recorded() -> tuple[list[Item], Episode]:
    """An episode with two workers, whose events a real sampler gave."""
    from page_driver import recorded  # playwright may not be installed

    return recorded()


@pytest.fixture
def double(recorded: tuple[list[Item], Episode]) -> Iterator[PageDouble]:
    with PageDouble(*recorded) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, for which two names without TLS are this machine."""
    from page_driver import CHROMIUM, playwright

    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    names = "--host-resolver-rules=MAP box.lan 127.0.0.1,MAP evil.example 127.0.0.1"
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", names])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, double: PageDouble) -> Iterator[Any]:
    """The page, opened. No test leaves an error in the console, and no text of a model has run."""
    from page_driver import opened

    yield from opened(browser, double)
