"""One thread steps for all: requests from tasks and threads, cancelled, failed, paused, drained; no page is left."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from test_sampler import GREEDY, ISOLATED, SHARED

import tiny_models as tm
from asyncthink import ForkJoinSampler, SamplingParams
from asyncthink.engine.async_engine import AsyncEngine, EngineFullError, EngineStoppedError
from asyncthink.episode.options import Options
from asyncthink.episode.records import Event, TokenEvent
from scripted import PROMPTS, sampler

ALONE = "S:q\nhm<ANSWER>7</ANSWER>"
LONG = "S:l\n" + "x" * 150


@contextmanager
def running(scripts=(*SHARED, *ISOLATED, ALONE, LONG), **options) -> Iterator[AsyncEngine]:
    """An engine that gives all its pages back when it is closed."""
    s = sampler(scripts)
    with AsyncEngine(s, **options) as engine:
        yield engine
    assert s.scheduler.idle and s.cache.used_pages == 0
    s.cache.check()


def test_requests_with_different_options_share_their_steps():
    with running() as engine:
        together = threading.Barrier(3)

        def ask(options):
            request = engine.sampler.request("q", GREEDY, options)
            together.wait()
            return engine.submit(request).result()

        async def all_three():
            options = [Options(), Options(join="append"), Options(mode="sequential")]
            return await asyncio.gather(*(asyncio.to_thread(ask, each) for each in options))

        engine.pause()
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(asyncio.run, all_three())
            while engine.stats().waiting < 3:  # each is in the inbox or in the scheduler
                engine.call(lambda: None).result()
            engine.resume()
            episodes = asked.result()
        assert [(e.answer, e.mode, e.join_mode) for e in episodes] == [
            ("42", "asyncthink", "exact"),
            ("42", "asyncthink", "append"),
            ("7", "sequential", "exact"),
        ]
        stats = engine.stats()
        assert stats.engine.steps == max(len(e.step_times) for e in episodes)
        assert stats.episodes == 3 and stats.finished == {"answer": 3} and stats.forks == 4 and stats.joins == 4
        assert stats.engine.drawn_tokens == sum(e.total_tokens for e in episodes)
        assert stats.running == stats.waiting == stats.agents == 0 and stats.healthy


def test_events_are_those_of_the_record():
    async def watch(engine):
        async with engine.stream("q", GREEDY) as stream:
            events = [event async for event in stream]
            return events, await stream.episode()

    with running() as engine:
        events, episode = asyncio.run(watch(engine))
    assert [event for event in events if isinstance(event, Event)] == episode.events
    for trace in episode.traces:
        told = (event.text for event in events if isinstance(event, TokenEvent) and event.agent == trace.agent)
        assert "".join(told) == trace.text


def test_the_same_episodes_as_the_samplers():
    model, tok = tm.organizer()
    params = [SamplingParams(temperature=0.8, seed=k, max_tokens=40) for k in range(6)]
    alone = ForkJoinSampler(model, tok, prompts=PROMPTS, num_pages=512)
    expected = alone.generate(list("abcdef"), params)

    async def ask(engine):
        return await asyncio.gather(*(engine.generate(q, p) for q, p in zip("abcdef", params, strict=True)))

    with AsyncEngine(ForkJoinSampler(model, tok, prompts=PROMPTS, num_pages=512)) as engine:
        got = asyncio.run(ask(engine))
    assert [[t.tokens for t in e.traces] for e in got] == [[t.tokens for t in e.traces] for e in expected]


@pytest.mark.parametrize("how", ["close", "drop", "task", "future"])
def test_a_cancelled_request_gives_its_pages_back(how):
    async def leave(engine):
        if how == "future":
            future = engine.submit(engine.sampler.request("l", GREEDY, Options(mode="sequential")))
            assert future.cancel()
        elif how == "task":
            task = asyncio.create_task(engine.generate("l", GREEDY, Options(mode="sequential")))
            while not engine.stats().running:
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            stream = engine.stream("l", GREEDY, Options(mode="sequential"))
            await stream.batch()
            if how == "close":
                await stream.aclose()
                assert (await stream.episode()).finish == "cancelled"
            else:
                del stream
                gc.collect()

    with running() as engine:
        asyncio.run(leave(engine))
        stats = engine.stats()
        assert stats.running == stats.waiting == 0 and stats.pages <= 1  # the cached prefix


def test_bad_requests_fail_alone_and_early():
    with running() as engine:
        with pytest.raises(ValueError, match="question: expected a string"):
            asyncio.run(engine.generate(3, GREEDY))  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="question: expected fewer than 1024 tokens"):
            asyncio.run(engine.generate("x" * 2000, GREEDY))
        assert asyncio.run(engine.generate("q", GREEDY)).answer == "42"


def test_what_the_model_raises_ends_all_and_nothing_hangs():
    async def ask(engine):
        engine.sampler.decoder.failing = len(engine.sampler.decoder.rows) + 5
        return await asyncio.gather(
            engine.generate("q", GREEDY),
            engine.generate("l", GREEDY, Options(mode="sequential")),
            return_exceptions=True,
        )

    with running() as engine:
        errors = asyncio.run(ask(engine))
        assert [type(error) for error in errors] == [EngineStoppedError] * 2
        assert all(str(error) == "the model failed: the model broke" for error in errors)
        assert not engine.healthy and isinstance(engine.failure, RuntimeError) and not engine.stats().healthy
        with pytest.raises(EngineStoppedError):
            asyncio.run(engine.generate("q", GREEDY))
        with pytest.raises(EngineStoppedError):
            engine.pause()


def test_a_stream_ends_with_what_the_model_raised():
    async def watch(engine):
        engine.sampler.decoder.failing = len(engine.sampler.decoder.rows) + 5
        async with engine.stream("q", GREEDY) as stream:
            async for _ in stream:
                pass

    with running() as engine, pytest.raises(EngineStoppedError, match="the model broke"):
        asyncio.run(watch(engine))


def test_no_more_wait_than_may():
    with running(max_waiting=2) as engine:
        engine.pause()
        request = engine.sampler.request("q", GREEDY)
        futures = [engine.submit(request) for _ in range(2)]
        with pytest.raises(EngineFullError, match="expected fewer than 2 waiting requests, got 2"):
            engine.submit(request)
        engine.resume()
        assert [future.result().answer for future in futures] == ["42", "42"]


def test_drains_or_cancels_when_it_is_closed():
    for drain in (True, False):
        with running() as engine:
            engine.pause()
            future = engine.submit(engine.sampler.request("q", GREEDY))
            engine.close(drain=drain)
            assert future.result().finish == ("answer" if drain else "cancelled")
            with pytest.raises(EngineStoppedError, match="the engine is closed"):
                engine.submit(engine.sampler.request("q", GREEDY))
            engine.close()


def test_a_close_that_takes_too_long_cancels():
    with running() as engine:
        stepping, hold = threading.Event(), threading.Event()
        engine.sampler.decoder.on_forward = lambda number: number == 5 and (stepping.set(), hold.wait())
        future = engine.submit(engine.sampler.request("l", GREEDY, Options(mode="sequential")))
        stepping.wait()
        closer = threading.Thread(target=lambda: engine.close(timeout=1e-3))
        closer.start()
        hold.set()
        closer.join()
        assert future.result().finish in ("cancelled", "end")


def test_work_between_steps():
    with running() as engine:
        assert engine.call(lambda: 3).result() == 3
        with pytest.raises(ZeroDivisionError):
            engine.call(lambda: 1 / 0).result()
        assert engine.healthy
        engine.pause()
        assert engine.paused and engine.call(lambda: 4).result() == 4


def test_running_episodes_go_on_with_changed_weights():
    with running() as engine:
        changed = []

        def forward(number):
            if number == 8 and not changed:
                changed.append(engine.change_weights(lambda: "new"))

        engine.sampler.decoder.on_forward = forward
        engine.sampler.decoder.refresh = lambda: None
        engine.sampler.decoder.weights_version = lambda: len(changed)
        episode = asyncio.run(engine.generate("q", GREEDY))
        assert episode.answer == "42" and changed[0].result() == "new"


def test_a_loop_that_ended_leaves_no_episode_behind():
    with running() as engine:
        kept = []

        async def forget():
            kept.append(engine.stream("l", GREEDY, Options(mode="sequential")))

        asyncio.run(forget())
        while not engine.call(lambda: engine.sampler.scheduler.idle).result():
            pass
        assert kept[0].ticket.future.result().finish in ("cancelled", "end")


def test_a_cancelled_future_says_so():
    with running() as engine:
        engine.pause()
        future = engine.submit(engine.sampler.request("q", GREEDY))
        assert future.cancel()
        engine.resume()
        with pytest.raises(CancelledError):
            future.result()
