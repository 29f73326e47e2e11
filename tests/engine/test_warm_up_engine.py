"""An engine that records its steps ahead: the same draws, requests meanwhile, and an end amid it."""

from __future__ import annotations

import threading
from concurrent.futures import Future

import pytest

import tiny_models as tm
from asyncthink import AsyncEngine, ForkJoinSampler, SamplingParams
from asyncthink.engine.async_engine import EngineStoppedError
from asyncthink.episode.records import Episode
from asyncthink_kernels.ops.step_program import native
from scripted import PROMPTS, sampler

needs_native = pytest.mark.skipif(native() is None, reason="the native CPU kernels were not built")
DRAWN = SamplingParams(temperature=1.0, seed=3, max_tokens=40)


def organizer(**options: int) -> ForkJoinSampler:
    model, tok = tm.organizer()
    # Packed linear layers round a row alike beside any others.
    return ForkJoinSampler(model, tok, prompts=PROMPTS, pack=True, **{"num_pages": 128, **options})


def told(episode: Episode) -> list[tuple[list[int], list[float]]]:
    return [(trace.tokens, trace.logprobs) for trace in episode.traces]


@needs_native
def test_the_same_draws_and_requests_meanwhile() -> None:
    plain = organizer().generate(["q"], DRAWN)[0]
    early: list[Future[Episode]] = []
    phrases: list[str] = []
    made = threading.Event()

    def progress(phrase: str) -> None:
        made.wait()
        phrases.append(phrase)
        assert not engine.ready and engine.healthy
        if len(phrases) == 2:
            early.append(engine.submit(engine.sampler.request("q", DRAWN)))

    with AsyncEngine(organizer(), warm_up=4, progress=progress) as engine:
        made.set()
        sentence = engine.warmed.result()
        assert sentence.startswith("steps of up to 4 agents were recorded in ") and engine.ready
        assert phrases == [f"recording steps: {number} of 4 agents" for number in (1, 2, 3, 4)]
        late = engine.submit(engine.sampler.request("q", DRAWN)).result()
        assert told(early[0].result()) == told(late) == told(plain)
        steps = engine.sampler.decoder.recorded
        assert len(late.traces) > 1 and all(steps.serves(number) for number in (1, 2, 3, 4))
    assert engine.sampler.cache.used_pages == 0 and not engine.ready


@needs_native
def test_no_room() -> None:
    with AsyncEngine(organizer(num_pages=5), warm_up=8) as engine:
        assert engine.warmed.result().endswith("; there was no room for 6")


def test_nothing_to_record() -> None:
    reason = "no steps are recorded ahead: each branch has a cache of its own"
    s = sampler(["l"])
    s.decoder.explain = dict
    with AsyncEngine(s, warm_up=2) as engine:
        assert engine.warmed.result() == reason
    with AsyncEngine(s) as engine:
        assert engine.ready and engine.warmed.result() == "no steps are recorded ahead"


def test_an_end_amid_it() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def progress(phrase: str) -> None:
        begun.set()
        go_on.wait()

    engine = AsyncEngine(organizer(), warm_up=3, progress=progress)
    begun.wait()
    closing = threading.Thread(target=engine.close)
    closing.start()
    while not isinstance(refused(engine), EngineStoppedError):
        pass
    go_on.set()
    closing.join()
    assert isinstance(engine.warmed.exception(), EngineStoppedError) and not engine.ready


def refused(engine: AsyncEngine) -> BaseException | None:
    try:
        engine.submit(engine.sampler.continuation("q")).cancel()
    except EngineStoppedError as error:
        return error
    return None


def test_what_progress_raises_harms_nothing() -> None:
    def progress(phrase: str) -> None:
        raise OSError("a closed terminal")

    with AsyncEngine(organizer(), warm_up=3, progress=progress) as engine:
        assert str(engine.warmed.exception()) == "a closed terminal" and engine.ready
        assert engine.submit(engine.sampler.request("q", DRAWN)).result().traces


@pytest.mark.parametrize("agents", [-1, 65])
def test_numbers_of_no_use(agents: int) -> None:
    with pytest.raises(ValueError, match=rf"warm_up: expected a number of agents in \[0, 64\], got {agents}"):
        AsyncEngine(sampler(["l"]), warm_up=agents)
    with pytest.raises(ValueError, match="warm_up: expected"):
        AsyncEngine.load("no/such/model", warm_up=agents)
