"""A Decoder's step: what it takes and refuses, which rows reach the head, and that the model is left as it was."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from asyncthink.model import attention as model_step
from asyncthink.model.decoder import Decoder
from asyncthink_kernels.cache import OutOfPages
from tiny_models import eager, feed, joined_branches, same, tiny, tokens


@pytest.mark.parametrize("family", ["qwen3", "gpt_oss", "qwen3_moe"])
def test_bfloat16_stays_near_eager(family: str) -> None:
    model = tiny(family, dtype=torch.bfloat16)
    decoder = Decoder(model, num_pages=20)
    context = tokens(24, 1)
    (got,) = feed(decoder, (decoder.cache.root(), context))
    error = (got - eager(model, context)).norm(dim=-1) / got.norm(dim=-1)
    assert error.median() < 0.03  # rounding may send single tokens to another expert
    assert decoder.storage.dtype == torch.bfloat16


def test_layers_of_different_head_dims_have_storage_of_their_own() -> None:
    decoder = Decoder(tiny("gemma4"), num_pages=20)
    assert sorted(group.k.shape[-1] for group in decoder.storage.groups) == [16, 32]


def test_only_the_asked_rows_reach_the_head() -> None:
    model = tiny("qwen3")
    decoder = Decoder(model, num_pages=20)
    shapes: list[tuple[int, ...]] = []
    handle = model.lm_head.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape)))
    plan = decoder.cache.plan([(decoder.cache.root(), 9)])
    got = decoder.forward(tokens(9, 1), plan, [7, 2])
    handle.remove()
    assert shapes == [(1, 2, 48)]
    same(got, eager(model, tokens(9, 1))[[7, 2]])


def test_no_rows_at_all_and_soft_capped_logits() -> None:
    model = tiny("gemma2", final_logit_softcapping=2.0)
    decoder = Decoder(model, num_pages=20)
    root = decoder.cache.root()
    assert decoder.forward(tokens(9, 1), decoder.cache.plan([(root, 9)]), []).shape == (0, 97)
    (got,) = feed(decoder, (root, tokens(1, 2)))
    same(got, eager(model, torch.cat([tokens(9, 1), tokens(1, 2)]))[9:])
    assert got.abs().max() <= 2.0


def test_a_model_in_training_is_borrowed_without_a_trace() -> None:
    """A training loop owns the model: same weights, mode, configs and gradients; dropout is off in our steps only."""
    model = tiny("llama", attention_dropout=0.5)
    reference = eager(model, tokens(12, 1))
    model.train()
    model.model.layers[1].eval()
    modes = {name: module.training for name, module in model.named_modules()}
    places = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    implementation = model.config._attn_implementation
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

    decoder = Decoder(model, num_pages=20)
    same(feed(decoder, (decoder.cache.root(), tokens(12, 1)))[0], reference)

    assert {name: module.training for name, module in model.named_modules()} == modes
    assert {name: parameter.data_ptr() for name, parameter in model.named_parameters()} == places
    assert model.config._attn_implementation == implementation != "asyncthink"
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())

    model(input_ids=tokens(12, 1)[None], labels=tokens(12, 1)[None]).loss.backward()
    optimizer.step()
    (trained,) = feed(decoder, (decoder.cache.root(), tokens(12, 1)))
    model.eval()
    same(trained, eager(model, tokens(12, 1)))
    assert (trained - reference).abs().max() > 1e-2


def test_a_failing_step_leaves_the_model_as_it_was() -> None:
    model = tiny("qwen3").train()
    decoder = Decoder(model, num_pages=20)
    plan = decoder.cache.plan([(decoder.cache.root(), 3)])
    broken = model.model.layers[1].mlp.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        decoder.forward(tokens(3, 1), plan, [2])
    broken.remove()
    assert model.training
    assert model.config._attn_implementation == "sdpa"
    same(decoder.forward(tokens(3, 1), plan, [0, 1, 2]), eager(model.eval(), tokens(3, 1)))


def test_two_decoders_share_one_model() -> None:
    model = tiny("qwen3")
    decoders = [Decoder(model, num_pages=20) for _ in range(2)]
    roots = [decoder.cache.root() for decoder in decoders]
    for decoder, root, seed in zip(decoders, roots, (1, 2), strict=True):
        same(feed(decoder, (root, tokens(9, seed)))[0], eager(model, tokens(9, seed)))


def test_two_threads_step_one_model_in_turn() -> None:
    """The model's configs name our attention during a step: another thread's step must not take that away."""
    model = tiny("qwen3")

    def decode(seed: int) -> list[Tensor]:
        decoder = Decoder(model, num_pages=20)
        root = decoder.cache.root()
        return [feed(decoder, (root, token[None]))[0] for token in tokens(25, seed)]

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(decode, (1, 2)))
    for seed, logits in zip((1, 2), results, strict=True):
        same(torch.cat(logits), eager(model, tokens(25, seed)))
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(("family", "launches"), [("qwen3", 1), ("cohere2", 1), ("gemma3", 1), ("gemma4", 2)])
def test_an_append_is_one_launch_for_each_shape_of_layer(
    family: str, launches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = Decoder(tiny(family), num_pages=20)
    root, child = joined_branches(decoder, tokens(12, 1), tokens(4, 2), tokens(8, 3))
    calls: list[tuple[Tensor, ...]] = []
    monkeypatch.setattr(model_step, "join_append", lambda *args, **_: calls.append(args))
    decoder.join(root, child, 13, 17, "append")
    assert len(calls) == launches
    assert sum(k.shape[0] for k, *_ in calls) == 3


def test_our_attention_outside_a_step_says_so() -> None:
    model = tiny("qwen3")
    model.set_attn_implementation("asyncthink")
    with pytest.raises(RuntimeError, match=r"works inside asyncthink\.model\.decoder\.Decoder only"):
        model(input_ids=tokens(3, 1)[None])


@pytest.mark.parametrize(
    ("ids", "rows", "message"),
    [
        (torch.tensor([5, 6]), [0], r"tokens must be \[3\] int64.*got \[2\]"),
        (torch.tensor([5, 6, 7], dtype=torch.int32), [0], r"tokens must be \[3\] int64.*int32"),
        (torch.tensor([5, 6, 97]), [0], r"ids in \[0, 97\), got 5\.\.97"),
        (torch.tensor([5, 6, 7]), [3], r"row numbers in \[0, 3\), got \[3\]"),
    ],
)
def test_a_wrong_step_is_refused_before_anything_is_written(ids: Tensor, rows: list[int], message: str) -> None:
    decoder = Decoder(tiny("qwen3"), num_pages=4)
    decoder.storage.poison()
    plan = decoder.cache.plan([(decoder.cache.root(), 3)])
    with pytest.raises(ValueError, match=message):
        decoder.forward(ids, plan, rows)
    assert decoder.storage.k(0).isnan().all()


def test_joins_that_cannot_be() -> None:
    decoder = Decoder(tiny("qwen3"), page_size=4, num_pages=7)
    root, child = joined_branches(decoder, tokens(12, 1), tokens(4, 2), tokens(8, 3))
    with pytest.raises(ValueError, match="for 'exact' plan the tokens as rows"):
        decoder.join(root, child, 12, 14, "exact")
    used = decoder.cache.used_pages
    with pytest.raises(OutOfPages):
        decoder.join(root, child, 12, 20, "append")
    assert (decoder.cache.used_pages, root.length) == (used, 16)
    decoder.join(root, child, 12, 20, "link")
    assert (decoder.cache.used_pages, root.length) == (used, 24)


def test_an_append_that_fails_takes_its_slots_back(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = Decoder(tiny("qwen3"), num_pages=20)
    root, child = joined_branches(decoder, tokens(12, 1), tokens(4, 2), tokens(8, 3))
    used = decoder.cache.used_pages
    monkeypatch.setattr(model_step, "join_append", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        decoder.join(root, child, 12, 20, "append")
    assert (root.length, decoder.cache.used_pages) == (16, used)
