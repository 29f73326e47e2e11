"""Capturing: in which order, what an error becomes, and, where there is a GPU, that a replay computes the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from asyncthink.model.cuda_graphs import CaptureError, CudaRecorder, Rerun
from asyncthink_kernels.cache import StepPlan
from graph_cases import capturable, graphs_of, history, make
from tiny_models import feed, same, tiny, tokens

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


class Recording:
    """Stands in for what torch.cuda offers to a recorder, and notes what happens in which state."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[tuple[object, object, bool]] = []  # stream, sync debug mode, capturing: of each run of the work
        self.stream, self.mode, self.capturing, self.pools = "caller", 0, False, []
        self.breaking: Callable[[], None] = lambda: None  # called in each run
        self.replayed, self.made = 0, 0
        for name in ("graph_pool_handle", "Stream", "CUDAGraph", "current_stream", "graph", "get_sync_debug_mode"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", self.set_mode)
        monkeypatch.setattr(torch.cuda, "stream", self.on)
        monkeypatch.setattr(torch.cuda, "device", self.on_device)

    def work(self) -> None:
        self.seen.append((self.stream, self.mode, self.capturing))
        self.breaking()

    def graph_pool_handle(self) -> str:
        self.made += 1
        return f"pool {self.made}"

    def Stream(self, device: object) -> Any:  # noqa: N802
        return _Stream("side")

    def current_stream(self, device: object) -> Any:
        return _Stream("caller")

    def CUDAGraph(self) -> Any:  # noqa: N802
        return _Graph(self)

    def get_sync_debug_mode(self) -> object:
        return self.mode

    def set_mode(self, mode: object) -> None:
        self.mode = mode

    @contextmanager
    def on_device(self, device: object) -> Iterator[None]:
        yield

    @contextmanager
    def on(self, stream: Any) -> Iterator[None]:
        before, self.stream = self.stream, stream.name
        try:
            yield
        finally:
            self.stream = before

    @contextmanager
    def graph(self, graph: object, pool: object, stream: Any, capture_error_mode: str) -> Iterator[None]:
        """As torch's: where the capture breaks, leaving it fails as well, and the stream stays."""
        assert isinstance(graph, _Graph) and capture_error_mode == "thread_local"
        self.pools.append(pool)
        self.stream, self.capturing = stream.name, True
        try:
            yield
        except Exception:
            raise RuntimeError("operation failed due to a previous error during capture")  # noqa: B904
        finally:
            self.capturing = False
        self.stream = "caller"


class _Graph:
    def __init__(self, recording: Recording) -> None:
        self.recording = recording

    def replay(self) -> None:
        self.recording.replayed += 1


class _Stream:
    def __init__(self, name: str) -> None:
        self.name = name

    def wait_stream(self, other: object) -> None:
        pass


RUNS = [("side", 0, False), ("side", "error", False), ("side", 0, True)]  # once freely, once watched, once captured


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Recording:
    return Recording(monkeypatch)


def test_a_capture_is_prepared_and_proven_once(cuda: Recording) -> None:
    recorder = CudaRecorder(torch.device("cuda:0"))
    replay = recorder.record(cuda.work)
    assert cuda.seen == RUNS and cuda.pools == ["pool 1"] and cuda.stream == "caller"
    replay()
    assert cuda.replayed == 1 and len(cuda.seen) == 3
    recorder.record(cuda.work)
    assert cuda.seen[3:] == [RUNS[0], RUNS[2]] and cuda.pools == ["pool 1"] * 2


def test_a_pool_lives_as_long_as_a_graph_in_it(cuda: Recording) -> None:
    """torch fails to capture into a pool whose graphs are all gone, as they are after `StepGraphs.clear`."""
    recorder = CudaRecorder(torch.device("cuda:0"))
    first, second = recorder.record(cuda.work), recorder.record(cuda.work)
    del first
    third = recorder.record(cuda.work)
    assert cuda.pools == ["pool 1"] * 3
    del second, third
    kept = recorder.record(cuda.work)
    recorder.record(cuda.work)
    assert cuda.pools[3:] == ["pool 2"] * 2
    kept()


@pytest.mark.parametrize("run", range(3))
def test_an_error_before_the_capture_is_the_models_own_and_later_ones_are_the_captures(
    run: int, cuda: Recording
) -> None:
    def breaking() -> None:
        if len(cuda.seen) == run + 1:
            raise ZeroDivisionError("waited for the GPU")

    cuda.breaking = breaking
    with pytest.raises(CaptureError if run else ZeroDivisionError, match=r"(^|: )waited for the GPU$"):
        CudaRecorder(torch.device("cuda:0")).record(cuda.work)
    assert cuda.seen == RUNS[: run + 1]
    assert cuda.stream == "caller" and cuda.mode == 0 and not cuda.replayed


@needs_gpu
@pytest.mark.parametrize("family", ["qwen3", "llama", "gemma3", "gpt_oss"])
def test_captured_steps_are_bitwise_the_uncaptured_ones(family: str) -> None:
    model = capturable(tiny(family)).cuda()
    captured, rerun = make(model, True), make(model, True)
    rerun._packed.capture(Rerun())
    for one, other in zip(history(captured, feed), history(rerun, feed), strict=True):
        assert torch.equal(one, other)
    assert captured.graphs is not None and "graphs" not in captured.unavailable


@needs_gpu
def test_the_host_waits_for_nothing_in_a_replayed_step() -> None:
    decoder = make(tiny("qwen3").cuda(), True)
    root = decoder.cache.root()
    feed(decoder, (root, tokens(1, 1)))
    feed(decoder, (root, tokens(1, 2)))
    ids = tokens(1, 3)
    torch.cuda.set_sync_debug_mode("error")
    try:
        decoder.forward(ids, decoder.cache.plan([(root, 1)]), [0])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(graphs_of(decoder).capacities) == 1


@needs_gpu
def test_a_model_that_waits_for_the_gpu_falls_back_on_a_gpu() -> None:
    model = tiny("qwen3").cuda()
    decoder = make(model, True)
    waiting = model.model.layers[1].mlp.register_forward_hook(lambda *call: call[-1] * call[-1].isfinite().all().item())
    root = decoder.cache.root()
    with pytest.warns(RuntimeWarning, match=r"qwen3 cannot be captured: .*called a synchronizing CUDA operation"):
        first = feed(decoder, (root, tokens(1, 1)))
    second = feed(decoder, (root, tokens(4, 2)))
    waiting.remove()
    plain = make(model, False)
    root = plain.cache.root()
    same(torch.cat(first + second), torch.cat(feed(plain, (root, tokens(1, 1))) + feed(plain, (root, tokens(4, 2)))))


@needs_gpu
def test_recording_goes_on_after_all_was_forgotten_and_beside_plans_on_the_gpu() -> None:
    model = tiny("qwen3").cuda()
    decoder, plain = make(model, True), make(model, False)
    for one, found in ((decoder, got := []), (plain, expected := [])):
        root = one.cache.root()
        for seed in range(4):
            plan: StepPlan = one.cache.plan([(root, 1)])
            found.append(one.forward(tokens(1, seed).cuda(), plan.to("cuda") if seed == 2 else plan, [0]))
            if one.graphs is not None:
                one.graphs.clear()
    assert decoder.graphs is not None and "graphs" not in decoder.unavailable
    for logits, wanted in zip(got, expected, strict=True):
        same(logits, wanted)


@needs_gpu
def test_dropped_graphs_and_tokens_on_the_gpu() -> None:
    model = tiny("qwen3").cuda()
    decoder, plain = make(model, True), make(model, False)
    decoder._packed.capture(most=1)
    for one, found in ((decoder, got := []), (plain, expected := [])):
        branches = [one.cache.root() for _ in range(4)]
        for count in (1, 4, 2, 4, 1, 1):
            plan: StepPlan = one.cache.plan([(branch, 1) for branch in branches[:count]])
            found.append(one.forward(tokens(count, count).cuda(), plan, list(range(count))))
    for logits, wanted in zip(got, expected, strict=True):
        same(logits, wanted)
