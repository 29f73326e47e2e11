"""Decode steps from static buffers: the eager steps' logits and tokens, whatever was in the buffers before."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing._internal.two_tensor import TwoTensor

from asyncthink import ForkJoinSampler, SamplingParams
from asyncthink.episode.options import JoinMode
from asyncthink.episode.records import Episode
from asyncthink.model.cuda_graphs import MAX_ROWS, CaptureError, Rerun
from asyncthink.model.decoder import Decoder
from asyncthink_kernels.cache import Branch, Capacity, PlanBuffers
from graph_cases import capturable, graphs_of, history, make
from scripted import PROMPTS
from tiny_models import eager, feed, organizer, same, tiny, tokens


class Counting(Rerun):
    """Counts recordings and replays."""

    recorded = replayed = 0

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            work()

        return replay


def counted(decoder: Decoder, most: int = 32) -> Counting:
    """Let the decoder's steps be counted."""
    recorder = Counting()
    decoder._packed.capture(recorder, most)
    return recorder


@pytest.mark.parametrize("family", ["qwen3", "llama", "gemma4", "gpt_oss", "phi3", "deepseek_v3", "qwen3_moe"])
def test_static_steps_give_the_logits_of_the_same_rows_run_eagerly(family: str, device: str) -> None:
    """Bitwise those of an eager step that is padded alike, and nearly those of one that is not."""
    model = capturable(tiny(family)).to(device)

    def padded(decoder: Decoder, *work: tuple[Branch, Tensor]) -> list[Tensor]:
        plan = decoder.cache.plan([(branch, len(new)) for branch, new in work])
        T, capacity = len(plan.slots), Capacity.of(plan)
        ids = torch.cat([*(new for _, new in work), torch.zeros(capacity.rows - T, dtype=torch.int64)])
        logits = decoder.forward(ids, PlanBuffers(capacity, "cpu").load(plan), torch.arange(capacity.rows))
        return list(logits[:T].split([len(new) for _, new in work]))

    static = make(model, True)
    assert "graphs" not in static.unavailable
    got = history(static, feed)
    assert len(graphs_of(static).capacities) >= 3
    for logits, wide, plain in zip(
        got, history(make(model, False), padded), history(make(model, False), feed), strict=True
    ):
        assert torch.equal(logits, wide)
        same(logits, plain)


def sampled(parts: tuple[nn.Module, Any], params: SamplingParams, **options: Any) -> tuple[list[Episode], Decoder]:
    model, tok = parts
    sampler = ForkJoinSampler(model, tok, prompts=PROMPTS, num_pages=2000, **options)
    episodes = sampler.generate(["q"] * 12, [params.with_seed(k) for k in range(12)])
    sampler.cache.check()
    sampler.prefixes.clear()
    assert sampler.cache.used_pages == 0
    return episodes, sampler.decoder


@pytest.fixture(scope="module")
def parts() -> tuple[nn.Module, Any]:
    return organizer()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("join", JoinMode)
def test_episodes_are_the_same_with_and_without(
    join: str, temperature: float, device: str, parts: tuple[nn.Module, Any]
) -> None:
    parts = (parts[0].to(device), parts[1])
    params = SamplingParams(temperature=temperature, max_tokens=40)
    with_graphs, decoder = sampled(parts, params, join=join, graphs=True)
    without, plain = sampled(parts, params, join=join, graphs=False)
    assert plain.graphs is None
    assert len(graphs_of(decoder).capacities) > 2
    assert any(episode.joins for episode in without)
    for one, other in zip(with_graphs, without, strict=True):
        assert one.answer == other.answer and one.finish == other.finish
        for a, b in zip(one.traces, other.traces, strict=True):
            assert a.tokens == b.tokens
            assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)


def test_a_cancelled_episode_leaves_nothing(parts: tuple[nn.Module, Any]) -> None:
    model, tok = parts
    sampler = ForkJoinSampler(model, tok, prompts=PROMPTS, num_pages=2000, graphs=True)
    params = SamplingParams(temperature=1.0, max_tokens=40, seed=3)
    (alone,) = sampler.generate(["q"], params)
    for steps in (1, 9, 30):
        with sampler.stream("q", dataclasses.replace(params, seed=steps)) as stream:
            for _, _ in zip(range(steps), stream, strict=False):
                pass
    (again,) = sampler.generate(["q"], params)
    assert [trace.tokens for trace in again.traces] == [trace.tokens for trace in alone.traces]
    sampler.cache.check()
    sampler.prefixes.clear()
    assert sampler.cache.used_pages == 0


def test_one_recording_for_each_capacity_and_none_for_prefills() -> None:
    decoder = make(tiny("qwen3"), True)
    recorder = counted(decoder)
    root = decoder.cache.root()
    plan = decoder.cache.plan([(root, 9)])
    decoder.forward(tokens(9, 1), plan, [8])
    assert recorder.recorded == 0, "one row of nine is wanted"
    met: list[Capacity] = []
    for token in tokens(40, 2):
        plan = decoder.cache.plan([(root, 1)])
        met.append(Capacity.of(plan))
        decoder.forward(token[None], plan, [0])
    assert recorder.replayed == 40
    assert recorder.recorded == len(set(met)) == len(graphs_of(decoder).capacities) > 1
    assert graphs_of(decoder).capacities[-1] == met[-1]


def test_a_capacity_outgrown_and_met_again() -> None:
    """Branches come and go, chunks fill up: each step is right whichever buffers it lands in."""
    decoder, plain = (make(tiny("qwen3"), graphs) for graphs in (True, False))
    logits: list[list[Tensor]] = [[], []]
    for found, one in zip(logits, (decoder, plain), strict=True):
        ids = iter(tokens(400, 3).split(1))
        for count in (1, 5, 2, 1, 5):
            branches = [one.cache.root() for _ in range(count)]
            for _ in range(11):
                found += feed(one, *((branch, next(ids)) for branch in branches))
            for branch in branches:
                one.cache.release(branch)
    assert {capacity.rows for capacity in graphs_of(decoder).capacities} == {1, 2, 8}
    for got, expected in zip(*logits, strict=True):
        same(got, expected)


def test_the_longest_unused_recording_goes_first() -> None:
    decoder = make(tiny("qwen3"), True)
    recorder = counted(decoder, most=2)
    branches = [decoder.cache.root() for _ in range(4)]

    def rows_after(count: int) -> list[int]:
        feed(decoder, *((branch, tokens(1, 1)) for branch in branches[:count]))
        return [capacity.rows for capacity in graphs_of(decoder).capacities]

    assert [rows_after(count) for count in (1, 2, 1, 4, 1, 2)] == [[1], [1, 2], [2, 1], [1, 4], [4, 1], [1, 2]]
    assert recorder.recorded == 4 and recorder.replayed == 6


def test_turn_tables_follow_the_shifts() -> None:
    """The same buffers serve steps whose links stand at other shifts."""
    model = tiny("qwen3")
    decoder = make(model, True)
    recorder = counted(decoder)
    for at in (9, 11, 10, 9):
        steps = []
        for one in (decoder, make(model, False)):
            root, worker = one.cache.root(), one.cache.root()
            one.forward(tokens(at + 12, at), one.cache.plan([(root, at), (worker, 12)]), [])
            one.join(root, worker, 2, 7, "link")
            steps.append(torch.cat([feed(one, (root, token))[0] for token in tokens(3, at + 1).split(1)]))
            one.cache.release(root)
            one.cache.release(worker)
        same(*steps)
    assert recorder.recorded == 1 and recorder.replayed == 12


def test_padding_rows_leave_the_cache_alone() -> None:
    decoder = make(tiny("qwen3"), True)
    branches = [decoder.cache.root() for _ in range(3)]
    feed(decoder, *((branch, tokens(1, 1)) for branch in branches))
    assert graphs_of(decoder).capacities[0].rows == 4
    written = ~decoder.storage.k(0).isnan().all(-1).all(-1).flatten()
    assert written.nonzero().flatten().tolist() == [0, 4, 8]


def test_logits_belong_to_the_caller() -> None:
    decoder = make(tiny("qwen3"), True)
    root = decoder.cache.root()
    (first,) = feed(decoder, (root, tokens(1, 1)))
    kept = first.clone()
    feed(decoder, (root, tokens(1, 2)))
    assert torch.equal(first, kept)


def test_only_whole_steps_of_some_rows_are_taken() -> None:
    decoder = make(tiny("qwen3"), True)
    graphs = graphs_of(decoder)

    def takes(T: int, rows: Tensor, device: str = "cpu") -> bool:
        plan = decoder.cache.plan([(root := decoder.cache.root(), T)]).to(device)
        decoder.cache.release(root)
        return graphs.takes(plan, rows)

    assert takes(3, torch.tensor([0, 1, 2])) and takes(MAX_ROWS, torch.arange(MAX_ROWS))
    assert not takes(3, torch.tensor([0, 2, 1]))
    assert not takes(3, torch.tensor([2]))
    assert not takes(3, torch.empty(0, dtype=torch.int64))
    assert not takes(MAX_ROWS + 1, torch.arange(MAX_ROWS + 1))
    assert not takes(3, torch.tensor([0, 1, 2]), device="meta"), "a plan that is on its device already"


@pytest.mark.parametrize("late", [False, True], ids=["at once", "after the first run"])
def test_a_model_that_cannot_be_captured_decodes_eagerly_and_says_why_once(late: bool) -> None:
    class Failing(Rerun):
        def record(self, work: Callable[[], None]) -> Callable[[], None]:
            if late:
                work()
            raise CaptureError("called a synchronizing operation")

    model = tiny("qwen3_moe")
    decoder = make(model, True)
    decoder._packed.capture(Failing())
    root = decoder.cache.root()
    with pytest.warns(RuntimeWarning, match="qwen3_moe cannot be captured: called a synchronizing operation; every"):
        (first,) = feed(decoder, (root, tokens(1, 1)))
    assert decoder.graphs is None
    assert decoder.unavailable["graphs"] == "qwen3_moe cannot be captured: called a synchronizing operation"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (second,) = feed(decoder, (root, tokens(5, 2)))
    same(torch.cat([first, second]), eager(model, torch.cat([tokens(1, 1), tokens(5, 2)])))


def test_rope_that_depends_on_the_length_is_not_captured() -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    model = tiny("llama", max_position_embeddings=64, rope_parameters=rope)
    decoder = make(model, True)
    assert decoder.graphs is None
    assert decoder.unavailable["graphs"] == "llama cannot be captured: its dynamic RoPE depends on the positions"
    assert decoder.join_modes == ("exact",)
    same(feed(decoder, (decoder.cache.root(), tokens(1, 1)))[0], eager(model, tokens(1, 1)))


def test_on_the_cpu_only_when_asked_for() -> None:
    decoder = Decoder(tiny("qwen3"), num_pages=4)
    assert decoder.graphs is None and "graphs" not in decoder.unavailable


def test_an_error_of_the_model_is_its_own_and_the_next_step_is_right() -> None:
    model = tiny("qwen3")
    decoder = make(model, True)
    root = decoder.cache.root()
    for recorded_before in (False, True):
        plan = decoder.cache.plan([(root, 1)])
        broken = model.model.layers[1].mlp.register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            decoder.forward(tokens(1, 1), plan, [0])
        broken.remove()
        assert not graphs_of(decoder).capacities
        got = decoder.forward(tokens(1, 1), plan, [0])
        assert graphs_of(decoder).capacities
        if not recorded_before:
            same(got, eager(model, tokens(1, 1)))
    same(got, eager(model, tokens(1, 1).repeat(2))[1:])


def test_weights_that_change_where_they_lie_are_seen_and_moved_ones_after_a_refresh() -> None:
    model = tiny("qwen3")
    decoder = make(model, True)
    recorder = counted(decoder)

    def first_logits() -> Tensor:
        root = decoder.cache.root()
        (logits,) = feed(decoder, (root, tokens(1, 1)))
        decoder.cache.release(root)
        return logits

    before = first_logits()
    with torch.no_grad():
        model.lm_head.weight.neg_()
    decoder.refresh()
    same(first_logits(), -before)
    assert recorder.recorded == 1
    model.lm_head.weight = nn.Parameter(-model.lm_head.weight.detach())
    decoder.refresh()
    same(first_logits(), before)
    decoder.refresh()
    same(first_logits(), before)
    assert recorder.recorded == 2


def test_weights_that_tell_no_address_are_taken_for_moved() -> None:
    model = tiny("qwen3")
    decoder = make(model, True)
    model.register_buffer("pair", TwoTensor(torch.ones(2), torch.ones(2)))  # as quantized weights are made
    decoder.refresh()
    feed(decoder, (decoder.cache.root(), tokens(1, 1)))
    assert graphs_of(decoder).capacities
    decoder.refresh()
    assert not graphs_of(decoder).capacities
