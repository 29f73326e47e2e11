"""RemoteSampler against our own server: the local engine's episodes, over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
from test_remote_driver import record

import tiny_models as tm
from asyncthink import ForkJoinSampler, SamplingParams
from asyncthink.engine.remote.errors import RefusedError, UnreachableError
from asyncthink.engine.remote.fleet import Fleet
from asyncthink.engine.remote.retries import Retries
from asyncthink.engine.remote.sampler import RemoteSampler
from asyncthink.episode.records import Episode, Event
from asyncthink.serve.settings import Limits, Settings
from scripted import PROMPTS
from served import Served, served

MODEL, TOKENS = tm.organizer()
QUESTIONS = ["q", "pq", "a longer one", "7"]
AT_ONCE = Retries(most=3, first=0.0, longest=0.0)


def local(**options: Any) -> ForkJoinSampler:
    return ForkJoinSampler(MODEL, TOKENS, prompts=PROMPTS, num_pages=256, **options)


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served(local()) as server:
        yield server


@contextlib.contextmanager
def remote(*servers: Served, **options: Any) -> Iterator[RemoteSampler]:
    urls = [server.url for server in servers]
    with RemoteSampler(urls, TOKENS, prompts=PROMPTS, retries=AT_ONCE, **options) as sampler:
        yield sampler


def same(got: list[Episode], expected: list[Episode]) -> None:
    assert [record(episode, steps=False) for episode in got] == [record(episode, steps=False) for episode in expected]
    for one, other in zip(got, expected, strict=True):
        for trace, its in zip(one.traces, other.traces, strict=True):
            assert trace.logprobs == pytest.approx(its.logprobs, abs=1e-4)


@pytest.mark.parametrize("context", ["shared", "isolated"])
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_the_episodes_are_the_local_engines(server: Served, context: str, temperature: float) -> None:
    options = {"context": context, "pool": 3, "depth": 2}
    params = [SamplingParams(temperature=temperature, max_tokens=60, seed=k, top_k=20) for k in range(len(QUESTIONS))]
    expected = local(**options).generate(QUESTIONS, params)
    with remote(server, **options) as sampler:
        got = sampler.generate(QUESTIONS, params)
    same(got, expected)
    assert sum(episode.joins for episode in got) > 2, "workers were forked and joined"
    assert all(episode.meta["server"] == server.url for episode in got)


@pytest.mark.parametrize("options", [{"mode": "sequential"}, {"mode": "parallel", "pool": 2, "answer": "text"}])
def test_agents_alone(server: Served, options: dict[str, Any]) -> None:
    params = SamplingParams(temperature=0.7, max_tokens=30, seed=5, stop=("ab",))
    with remote(server, **options) as sampler:
        same(sampler.generate(QUESTIONS, params), local(**options).generate(QUESTIONS, params))


@pytest.mark.parametrize("guide", ["legal", "plan"])
@pytest.mark.parametrize("limit", [{}, {"max_episode_tokens": 90}])
def test_guides_hold_on_our_server(server: Served, guide: str, limit: dict[str, int]) -> None:
    params = [SamplingParams(temperature=0.8, max_tokens=60, seed=k, **limit) for k in range(len(QUESTIONS))]
    expected = local(guide=guide).generate(QUESTIONS, params)
    with remote(server, guide=guide) as sampler:
        same(sampler.generate(QUESTIONS, params), expected)
    assert not any(episode.format_errors for episode in expected) and any(episode.joins for episode in expected)


def test_streams_and_coroutines_give_the_same(server: Served) -> None:
    params = SamplingParams(temperature=0.9, max_tokens=60, seed=1)
    with remote(server) as sampler:
        (expected,) = sampler.generate(["q"], params)
        with sampler.stream("q", params) as stream:
            events = list(stream)
        assert record(stream.episode) == record(expected)
        assert [event for event in events if isinstance(event, Event)] == stream.episode.events
        drawn = [event.token for event in events if not isinstance(event, Event) and event.agent == 0 and event.sampled]
        trace = expected.traces[0]
        assert drawn == [token for token, own in zip(trace.tokens, trace.sampled, strict=True) if own]
        (other,) = asyncio.run(sampler.agenerate(["q"], params))
        assert record(other) == record(expected)


def idle(server: Served) -> bool:
    return server.engine.stats().running == 0


def test_cancelling_reaches_the_server(server: Served) -> None:
    params = SamplingParams(temperature=4.0, max_tokens=900)

    async def cancel(sampler: RemoteSampler) -> None:
        begun = asyncio.Event()
        loop = asyncio.get_running_loop()
        told = lambda number, event: loop.call_soon_threadsafe(begun.set)  # noqa: E731
        task = asyncio.create_task(sampler.agenerate(["q"], params, on_event=told))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with remote(server, mode="parallel", pool=3, answer="text") as sampler:
        asyncio.run(cancel(sampler))
        while not idle(server):
            pass
        with sampler.stream("q", params) as stream:
            next(stream)
        while not idle(server):
            pass
    assert stream.episode.finish in ("cancelled", "")


def test_a_listener_that_raises_ends_its_episode(server: Served) -> None:
    def listen(number: int, event: object) -> None:
        if number == 1:
            raise KeyError("mine")

    seen = []
    with remote(server) as sampler:
        with pytest.raises(KeyError, match="mine"):
            sampler.generate(["q", "pq"], SamplingParams(max_tokens=20), on_event=listen)
        sampler.generate(["q"], SamplingParams(max_tokens=20), on_event=lambda number, event: seen.append(number))
    assert set(seen) == {0}


def test_a_server_that_ends_in_the_middle_costs_nothing() -> None:
    params = [SamplingParams(temperature=0.9, max_tokens=60, seed=k) for k in range(12)]
    expected = local().generate(["q"] * 12, params)
    with served(local()) as other:
        ending = contextlib.ExitStack()
        with ending:
            first = ending.enter_context(served(local(), drain_seconds=0.0))
            with remote(first, other) as sampler:
                dead: list[int] = []

                def kill(number: int, event: Event | Any) -> None:
                    if not dead and number == 5:
                        dead.append(number)
                        first.engine.close(drain=False)

                got = sampler.generate(["q"] * 12, params, on_event=kill)
                stats = sampler.stats
    same(got, expected)
    assert dead and stats.moved and {episode.meta["server"] for episode in got[6:]} <= {first.url, other.url}


def test_no_server_left() -> None:
    with served(local(), drain_seconds=0.0) as server, remote(server) as sampler:
        server.engine.close(drain=False)
        with pytest.raises(UnreachableError, match="no answer after 3 attempts"):
            sampler.generate(["q", "p"], SamplingParams(max_tokens=5))
    with pytest.raises(UnreachableError, match=r"127\.0\.0\.1:9"):
        RemoteSampler(["http://127.0.0.1:9"], TOKENS)


@pytest.mark.slow  # the server asks for a second each time
def test_a_full_server_is_waited_for() -> None:
    settings = Settings("tiny", limits=Limits(waiting=1))
    params = [SamplingParams(temperature=0.9, max_tokens=30, seed=k) for k in range(4)]
    with served(local(max_episodes=1), settings) as server:
        patient = Retries(most=10**6, first=0.0, longest=0.0)
        with RemoteSampler([server.url], TOKENS, prompts=PROMPTS, retries=patient) as sampler:
            got = sampler.generate(["q"] * 4, params)
            assert sampler.stats.failures
    same(got, local().generate(["q"] * 4, params))


def test_what_a_server_refuses_ends_one_episode() -> None:
    settings = Settings("tiny", limits=Limits(prompt_tokens=20))
    warned = pytest.warns(RuntimeWarning, match="at most 20 tokens")
    with served(local(), settings) as server, remote(server) as sampler, warned:
        fine, refused = sampler.generate(["q", "x" * 30], SamplingParams(max_tokens=6, temperature=0.0))
    assert refused.finish == "failed" and "at most 20 tokens" in refused.failures[0]
    assert fine.finish != "failed"


def test_keys_and_names() -> None:
    with served(local(), Settings("tiny", api_key="secret")) as server:
        with pytest.raises(RefusedError, match="401"):
            RemoteSampler([server.url], TOKENS)
        with pytest.raises(RefusedError, match="expected one of tiny, got 'big'"):
            RemoteSampler([server.url], TOKENS, api_key="secret", model="big")
        with RemoteSampler([server.url], TOKENS, api_key="secret", model="tiny") as sampler:
            told = sampler.explain()
        assert told[server.url] == "asyncthink, tiny" and told["positions"] == "4096"


def test_samplers_share_a_fleet(server: Served) -> None:
    fleet = Fleet([server.url])
    for mode in ("asyncthink", "sequential"):
        RemoteSampler(fleet, TOKENS, prompts=PROMPTS, mode=mode).generate(["q"], SamplingParams(max_tokens=5))
    assert fleet.stats.requests >= 2
    fleet.close()
    with pytest.raises(RuntimeError, match="closed"):
        RemoteSampler(fleet, TOKENS, prompts=PROMPTS).generate(["q"])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"join": "append"}, "join: expected 'exact' on servers"),
        ({"order": "random"}, "random"),
        ({"pool": 0}, "pool: expected at least 1"),
    ],
)
def test_options_are_checked(server: Served, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        RemoteSampler([server.url], TOKENS, **options)


@pytest.mark.parametrize("servers", ["http://a", [], ["localhost:80"], ["http://a", "http://a/"]])
def test_addresses_are_checked(servers: Any) -> None:
    with pytest.raises(ValueError, match="servers: expected"):
        RemoteSampler(servers, TOKENS)


def test_prompts_are_checked_before_anything_runs(server: Served) -> None:
    with remote(server) as sampler:
        with pytest.raises(ValueError, match=r"questions\[1\]: expected fewer than 4096 tokens"):
            sampler.generate(["q", "x" * 5000])
        assert sampler.stats.requests == 0
