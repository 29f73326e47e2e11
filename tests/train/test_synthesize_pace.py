"""Synthesis: waits that a server asks for, its errors, and what replies cost."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from chat_double import Told, document, double

from asyncthink.train.synthesize.asking import Document

pytest.importorskip("openai", reason="the extra synthesize is not installed")
from synthesized import QUESTIONS, options, right

from asyncthink.train.synthesize.pace import Pace, retry_after
from asyncthink.train.synthesize.run import Synthesis, synthesize


class Time:
    """Seconds that pass only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def test_a_server_that_asks_to_wait_is_waited_for(tmp_path: Path) -> None:
    time = Time()
    waits = [Told("slow down", 429, {"retry-after": "300"}), Told("busy", 503), Told("busy", 503)]

    with double(lambda body, number: waits[number] if number < 3 else right(body, number)) as server:
        pace = Pace(1, 3, time.sleep, lambda: time.now)
        totals = synthesize(options(server, tmp_path / "t.jsonl"), QUESTIONS[:1], "none", pace=pace)
    assert (totals.kept, pace.retried, len(server.requests)) == (1, 3, 4)
    first, second, third = time.slept
    assert first == 300.0
    assert 0.75 <= second <= 1.0
    assert 1.5 <= third <= 2.0


def test_a_pause_holds_up_every_request(tmp_path: Path) -> None:
    """One of two requests is told to wait: until then the other one sends nothing either."""
    time, both = Time(), threading.Barrier(2)
    starts: list[float] = []

    def answer(body: dict[str, Any], number: int) -> Told:
        starts.append(time.now)
        if number < 2:
            both.wait()
        return Told("wait", 429, {"retry-after-ms": "5000"}) if number < 2 else right(body, number)

    with double(answer) as server:
        pace = Pace(2, 3, time.sleep, lambda: time.now)
        synthesize(options(server, tmp_path / "t.jsonl", concurrency=2), QUESTIONS, "none", pace=pace)
    assert starts[:2] == [0.0, 0.0]
    assert min(starts[2:]) >= 5.0


def test_at_most_so_many_requests_at_once(tmp_path: Path) -> None:
    with double(right) as server:
        synthesize(options(server, tmp_path / "t.jsonl", concurrency=2), QUESTIONS * 4, "none", pace=Pace(2, 0))
    assert server.most_at_once <= 2
    assert len(server.requests) == len(QUESTIONS)


def test_retry_after() -> None:
    assert retry_after({"retry-after-ms": "1500", "retry-after": "9"}) == 1.5
    assert retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0.0
    assert retry_after({"retry-after": "inf"}) is None
    assert retry_after({}) is None


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        (Told("bad key", 401), r"server: http://.*/v1 answered 401: .*bad key"),
        (Told("no such model", 404), r"answered 404: .*no such model"),
        (Told("overloaded", 503), r"answered 503: .*overloaded"),
        (Told("no such field", 400), r"answered 400: .*no such field"),
    ],
)
def test_errors_that_end_it(tmp_path: Path, told: Told, reason: str) -> None:
    time = Time()
    with double(lambda body, number: told) as server:
        pace = Pace(1, 2, time.sleep, lambda: time.now)
        asked = options(server, tmp_path / "t.jsonl", concurrency=1)
        with pytest.raises(RuntimeError, match=reason):
            synthesize(asked, QUESTIONS, "none", pace=pace)
    assert len(server.requests) == {503: 3, 400: 5}.get(told.status, 1)


def test_no_server(tmp_path: Path) -> None:
    told = Synthesis("http://127.0.0.1:9", "m", tmp_path / "t.jsonl", Document(), retries=0)
    with pytest.raises(RuntimeError, match=r"server: no answer from http://127.0.0.1:9/v1: ConnectError"):
        synthesize(told, QUESTIONS, "none")


def test_a_refused_question_does_not_stop_the_others(tmp_path: Path) -> None:
    def answer(body: dict[str, Any], number: int) -> Told:
        return Told("too long", 400) if "Problem: 3 +" in body["messages"][-1]["content"] else right(body, number)

    with double(answer) as server:
        totals = synthesize(options(server, tmp_path / "t.jsonl", concurrency=1), QUESTIONS, "none")
    assert (totals.kept, dict(totals.rejected), totals.prompt_tokens) == (4, {"refused": 3}, 400)


def test_costs_are_bounded(tmp_path: Path) -> None:
    prices = {"price_in": 1000.0, "price_out": 5000.0, "max_cost": 0.5, "concurrency": 1}  # 0.2 a reply
    with double(right) as server:
        told = options(server, tmp_path / "t.jsonl", **prices)
        totals = synthesize(told, QUESTIONS, "none")
    assert totals.kept == 3
    assert told.cost(totals) == pytest.approx(0.6)
    with double(lambda body, number: Told(document(body), usage=None)) as server:
        assert synthesize(options(server, tmp_path / "u.jsonl"), QUESTIONS, "none").unpriced == 5
