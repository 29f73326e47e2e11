"""The driver against the local engine: the same episodes, whatever the order in which tokens come."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import CODEC, OracleTransport, local

from asyncthink.engine.prompting import texts_for
from asyncthink.engine.remote.driver import Driver
from asyncthink.engine.remote.transport import Ask, Chunk
from asyncthink.episode.core import EpisodeCore
from asyncthink.episode.options import Context, Mode, Options
from asyncthink.episode.params import SamplingParams
from asyncthink.episode.records import Episode
from scripted import PROMPTS

_CACHE = ("kv_bytes_shared", "kv_bytes_copied", "prefix_tokens")
PARAMS = SamplingParams(temperature=0.0, max_tokens=40)


def core_of(options: Options, params: SamplingParams = PARAMS, **more) -> EpisodeCore:
    ids = CODEC.encode(PROMPTS.parts("organizer" if options.mode == "asyncthink" else "solo", question="q"))
    return EpisodeCore("q", ids, params, options, texts_for(CODEC, PROMPTS), clock=itertools.count().__next__, **more)


def drive(core: EpisodeCore, transport, **options) -> Episode:
    episode = asyncio.run(Driver(core, transport, **options).run())
    assert transport.open == 0
    return episode


def record(episode: Episode, *, steps: bool = True) -> dict:
    """What of an episode does not depend on the engine's kind and speed; log-probabilities are compared elsewhere."""
    data = episode.to_dict()
    for name in ("wall_seconds", "critical_path_seconds", "step_times", "meta", *_CACHE):
        del data[name]
    for part in (*data["events"], *data["traces"]):
        part.pop("time", None)
        part.pop("logprobs", None)
        if not steps:
            part.pop("step", None)
            part.pop("steps", None)
    if not steps:
        data["events"].sort(key=lambda event: event["agent"])
    return data


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 10**6), st.integers(0, 10**6), st.sampled_from(Context), st.integers(1, 3), st.integers(1, 2),
    st.sampled_from([None, 60]), st.sampled_from([(), ("bb", "ab")]),
)  # fmt: skip
def test_steps_give_the_local_engines_record(salt, luck, context, pool, depth, total, stop):
    options = Options(context=context, pool=pool, depth=depth)
    params = SamplingParams(temperature=0.0, max_tokens=40, max_episode_tokens=total, stop=stop)
    (expected,) = local(salt, pool=pool, context=context, depth=depth).generate(["q"], params)
    assert record(drive(core_of(options, params), OracleTransport(salt, luck))) == record(expected)


@pytest.mark.parametrize("mode", [Mode.SEQUENTIAL, Mode.PARALLEL])
def test_agents_alone_write_what_they_write_locally(mode):
    for salt in range(4):
        (expected,) = local(salt, mode=mode, pool=2).generate(["q"], PARAMS)
        got = drive(core_of(Options(mode, 2)), OracleTransport(salt, salt))
        assert record(got, steps=False) == record(expected, steps=False)


@pytest.mark.parametrize("streams", [True, False])
def test_arrival_changes_only_what_time_decides(streams):
    """With a seat for every fork, agents that come to their own end write the same in any order."""
    compared = 0
    for salt in range(14):
        transport = OracleTransport(salt, salt, streams=streams)
        got = drive(core_of(Options(pool=50)), transport, order="arrival")
        (expected,) = local(salt, pool=50).generate(["q"], PARAMS)
        assert (got.answer, got.finish) == (expected.answer, expected.finish)
        assert got.traces[0].tokens == expected.traces[0].tokens
        for trace, other in zip(got.traces, expected.traces, strict=True):
            if "cancelled" not in (trace.finish, other.finish):
                assert trace.tokens == other.tokens
                compared += trace.role == "worker"
    assert compared > 8


class Slow(OracleTransport):
    """Workers' tokens come only after the organizer's are all drawn."""

    def __init__(self, text: str, worker: str) -> None:
        super().__init__(0, 0)
        self.texts, self.organizer_waits = {0: CODEC.encode([(text, True)]), 1: CODEC.encode([(worker, True)])}, None

    async def draw(self, ask: Ask):
        self.asks.append(ask)
        self.open += 1
        try:
            self.organizer_waits = self.organizer_waits or asyncio.Event()
            if ask.agent == 0 and ask.position == 0:
                for token in self.texts[0]:
                    yield Chunk([token], [-1.0])
                self.organizer_waits.set()
            elif ask.agent:
                await self.organizer_waits.wait()
                yield Chunk(self.texts[1], [-1.0] * len(self.texts[1]))
            else:
                yield Chunk(CODEC.encode([("<ANSWER>k</ANSWER>", True)]), [-1.0] * 3)
        finally:
            self.open -= 1


def test_the_organizer_goes_on_while_a_worker_runs():
    transport = Slow("<FORK-1>ab</FORK-1>aaa<JOIN-1>", "<RETURN>xyz</RETURN>")
    episode = drive(core_of(Options()), transport, order="arrival")
    assert episode.answer == "k"
    assert [(ask.agent, ask.position) for ask in transport.asks] == [(0, 0), (1, 0), (0, 8)]
    forked = CODEC.decode(transport.asks[1].prompt)
    assert forked == "O:q\n<FORK-1>ab</FORK-1>W:", "the worker begins behind its fork, whatever has come since"
    assert CODEC.decode(transport.asks[2].prompt).endswith("<JOIN-1>xyz</JOIN-1>")
    assert "<JOIN-1>" in transport.asks[0].stop and "</RETURN>" in transport.asks[1].stop
    assert episode.traces[1].tokens[-1] == CODEC.encode([("</RETURN>", True)])[0]


def test_a_request_that_cannot_stream_stops_at_forks():
    transport = OracleTransport(3, 3, streams=False)
    drive(core_of(Options()), transport, order="arrival")
    assert "</FORK-1>" in transport.asks[0].stop and "</FORK-1>" not in OracleTransport(3, 3).asks


class Fails:
    """One token a request; then what it is told."""

    streams = True

    def __init__(self, then: Exception | None) -> None:
        self.then, self.open = then, 0

    async def draw(self, ask: Ask):
        self.open += 1
        try:
            if self.then is not None:
                yield Chunk(CODEC.encode([("a", True)]), [-1.0])
                raise self.then
            await asyncio.Event().wait()
        finally:
            self.open -= 1


def test_what_the_transport_raises_ends_the_episode():
    core, transport = core_of(Options()), Fails(ConnectionError("gone"))
    with pytest.raises(ConnectionError, match="gone"):
        drive(core, transport)
    assert core.episode.finish == "failed" and core.episode.failures == ["ConnectionError: gone"]
    assert transport.open == 0 and core.episode.total_tokens == 1, "what came before is in the record"


def test_time_runs_out_while_nothing_comes():
    core = EpisodeCore(
        "q", [1], SamplingParams(timeout=0.01), Options(), texts_for(CODEC, PROMPTS)
    )  # fmt: skip
    assert drive(core, Fails(None)).finish == "timeout"


def test_cancelling_closes_every_request():
    async def cancel() -> tuple[EpisodeCore, Fails]:
        core, transport = core_of(Options(Mode.PARALLEL, 3)), Fails(None)
        task = asyncio.create_task(Driver(core, transport).run())
        while transport.open < 3:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return core, transport

    core, transport = asyncio.run(cancel())
    assert transport.open == 0 and core.episode.finish == "cancelled"


def test_an_engine_that_draws_nothing_is_an_error():
    class Nothing:
        streams, open = True, 0

        async def draw(self, ask: Ask):
            for chunk in list[Chunk]():
                yield chunk

    with pytest.raises(RuntimeError, match="at least one token"):
        drive(core_of(Options()), Nothing())


@pytest.mark.parametrize("join", ["append", "link"])
def test_joins_of_keys_and_values_are_refused(join):
    with pytest.raises(ValueError, match=f"join: expected 'exact' .*got '{join}'"):
        Driver(core_of(Options(join=join)), OracleTransport(0, 0))


def test_steps_need_a_stream():
    with pytest.raises(ValueError, match="order: expected 'arrival'"):
        Driver(core_of(Options()), OracleTransport(0, 0, streams=False))
