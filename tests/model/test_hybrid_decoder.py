"""Decoder with recurrent layers: forks copy a state and no K/V, and give the logits of plain transformers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from asyncthink.model.decoder import Decoder, DecoderError
from asyncthink.model.recurrent import StateStorage
from asyncthink_kernels.cache import StatefulCache
from tiny_hybrids import HYBRIDS, alone, tiny_hybrid
from tiny_models import feed, same, tiny, tokens


@pytest.fixture(scope="module")
def models() -> dict[str, nn.Module]:
    return {}


@pytest.fixture
def decoder(request: pytest.FixtureRequest, models: dict[str, nn.Module]) -> Decoder:
    """A decoder of the parametrised family, its K/V and states poisoned."""
    family = request.param
    model = models.setdefault(family, tiny_hybrid(family))
    decoder = Decoder(model, page_size=4, num_pages=120, num_states=9, chunk=8)
    decoder.storage.poison()
    assert decoder.states is not None
    decoder.states.poison()
    return decoder


@pytest.mark.parametrize("decoder", HYBRIDS, indirect=True)
def test_forks_siblings_and_an_exact_join_equal_plain_calls(decoder: Decoder) -> None:
    """Chunked prefill beside another branch, forks at the end and at a snapshot, mixed steps, decoding, a join."""
    model, cache = decoder.model, decoder.cache
    assert isinstance(cache, StatefulCache)
    trunk, own, worker, late = tokens(19, 1), tokens(8, 2), tokens(12, 3), tokens(6, 4)
    root, other = cache.root(), cache.root()
    (first,) = feed(decoder, (root, trunk[:9]))
    cache.snapshot(root)
    second, single = feed(decoder, (root, trunk[9:]), (other, own))
    same(torch.cat([first, second]), alone(model, trunk))
    same(single, alone(model, own))

    child, early = cache.fork(root), cache.fork(root, at=9)
    parts: dict[str, list[Tensor]] = {"root": [], "child": [], "early": []}

    def step(**new: Tensor) -> None:
        branches = {"root": root, "child": child, "early": early}
        for name, logits in zip(new, feed(decoder, *((branches[n], t) for n, t in new.items())), strict=True):
            parts[name].append(logits)

    step(root=own[:3], child=worker[:7], early=late[:3])
    for i in range(3):
        step(early=late[3 + i : 4 + i], root=own[3 + i : 4 + i], child=worker[7 + i : 8 + i])
    step(root=worker)  # as an exact join
    same(torch.cat(parts["root"]), alone(model, torch.cat([trunk, own[:6], worker]))[19:])
    same(torch.cat(parts["child"]), alone(model, torch.cat([trunk, worker[:10]]))[19:])
    same(torch.cat(parts["early"]), alone(model, torch.cat([trunk[:9], late]))[9:])
    cache.check()
    for branch in (root, other, child, early):
        cache.release(branch)
    assert cache.used_pages == cache.used_states == 0


@pytest.mark.parametrize("decoder", ["qwen3_5", "jamba"], indirect=True)
def test_greedy_decoding_draws_the_tokens_of_transformers_own_cache(decoder: Decoder) -> None:
    cache, contexts = decoder.cache, [tokens(7, 5), tokens(7, 6), torch.cat([tokens(7, 5), tokens(2, 7)])]
    branches = [cache.root(), cache.root()]
    logits = feed(decoder, *zip(branches, contexts[:2], strict=True))
    branches.append(cache.fork(branches[0]))
    logits += feed(decoder, (branches[2], contexts[2][7:]))
    drawn: list[list[int]] = [[], [], []]
    for _ in range(12):
        for one, rows in zip(drawn, logits, strict=True):
            one.append(int(rows[-1].argmax()))
        logits = feed(decoder, *((b, torch.tensor(one[-1:])) for b, one in zip(branches, drawn, strict=True)))
    for context, one in zip(contexts, drawn, strict=True):
        expected = decoder.model.generate(  # type: ignore[operator]
            context[None], max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0
        )
        assert one == expected[0, len(context) :].tolist()


@pytest.mark.parametrize("decoder", ["falcon_h1"], indirect=True)
def test_a_fork_copies_its_state_when_it_goes_on_and_no_keys(decoder: Decoder) -> None:
    cache = decoder.cache
    root = cache.root()
    feed(decoder, (root, tokens(9, 1)))
    pages = cache.used_pages
    children = [cache.fork(root) for _ in range(3)]
    assert (cache.used_pages, cache.stats.states_copied) == (pages, 0)
    feed(decoder, *((child, tokens(1, 2)) for child in children))
    assert (cache.stats.states_copied, cache.stats.tokens_copied) == (3, 0)
    feed(decoder, (root, tokens(1, 3)))
    assert cache.stats.states_copied == 3, "the last of those who share a state keeps it"


@pytest.mark.parametrize("decoder", ["qwen3_5"], indirect=True)
def test_what_such_a_model_lacks_is_named(decoder: Decoder) -> None:
    assert decoder.join_modes == ("exact",)
    cache = decoder.cache
    root = cache.root()
    feed(decoder, (root, tokens(5, 1)))
    child = cache.fork(root)
    for mode in ("append", "link"):
        with pytest.raises(DecoderError, match="can only join exactly: it has recurrent layers"):
            decoder.join(root, child, 1, 3, mode)
    with pytest.raises(DecoderError, match=r"cannot run through torch\.compile"):
        Decoder(decoder.model, num_pages=8, compile=True)
    assert "recurrent layers" in Decoder(decoder.model, num_pages=8, graphs=True).explain()["graphs"]
    assert "slots of" in decoder.explain()["states"]
    with pytest.raises(ValueError, match="has no recurrent state behind its 3 tokens"):
        cache.plan([(cache.fork(root, at=3), 1)])


def test_a_pass_that_fails_leaves_no_state() -> None:
    decoder = Decoder(tiny_hybrid("qwen3_5"), page_size=4, num_pages=40, num_states=4)
    cache = decoder.cache
    root = cache.root()
    feed(decoder, (root, tokens(5, 1)))
    cache.snapshot(root)
    head, decoder.model.lm_head.forward = decoder.model.lm_head.forward, None  # type: ignore[union-attr,assignment,method-assign]
    with pytest.raises(TypeError):
        feed(decoder, (root, tokens(2, 2)))
    decoder.model.lm_head.forward = head  # type: ignore[union-attr,assignment,method-assign]
    assert not cache.restore(root)
    assert cache.forkable(root, 7) == 5
    (logits,) = feed(decoder, (cache.fork(root, at=5), tokens(2, 2)))
    same(logits, alone(decoder.model, torch.cat([tokens(5, 1), tokens(2, 2)]))[5:])


@pytest.mark.parametrize("weights", ["int8", "packed"])
def test_other_linear_layers(weights: str) -> None:
    """Packed and quantized layers serve such a model too; states are the same whatever the rows beside them."""
    options = {"pack": True} if weights == "packed" else {"weights": weights}
    decoder = Decoder(tiny_hybrid("qwen3_5", hidden_size=64, intermediate_size=64), num_pages=40, **options)
    cache, context = decoder.cache, tokens(9, 1)
    root, other = cache.root(), cache.root()
    together, _ = feed(decoder, (root, context), (other, tokens(9, 2)))
    (by_itself,) = feed(decoder, (cache.root(), context))
    same(together, by_itself)
    if weights == "packed":
        same(together, alone(decoder.model, context))


def test_bfloat16() -> None:
    decoder = Decoder(tiny_hybrid("qwen3_5", dtype=torch.bfloat16), num_pages=40)
    root = decoder.cache.root()
    feed(decoder, (root, tokens(5, 1)))
    child = decoder.cache.fork(root)
    context = torch.cat([tokens(5, 1), tokens(1, 2)])
    for logits in feed(decoder, (root, context[5:]), (child, context[5:])):
        same(logits.float(), alone(decoder.model, context)[5:], 5e-2)


def test_slots_without_a_gap_are_worked_in_place_and_others_are_gathered() -> None:
    decoder = Decoder(tiny_hybrid("mamba2"), num_pages=40, num_states=6)
    states = decoder.states
    assert isinstance(states, StateStorage)
    inside, rows = states.lend((1, 2), fresh=False)
    assert all(tensor.data_ptr() == states._slots[key][1].data_ptr() for key, tensor in rows.items())
    _, gathered = states.lend((1, 3), fresh=False)
    assert all(tensor.data_ptr() != states._slots[key][1].data_ptr() for key, tensor in gathered.items())
    assert inside.get_seq_length() == 0


def test_a_model_whose_states_are_its_own_is_refused() -> None:
    with pytest.raises(DecoderError, match="recurrent"):
        Decoder(tiny("recurrent_gemma", lru_width=48, attention_window_size=8), num_pages=8)


def test_the_cache_of_one_pass_is_transformers_own_kind() -> None:
    """What layers of a hybrid find in it are layers of transformers; only attention sees the new keys alone."""
    decoder = Decoder(tiny_hybrid("qwen3_5"), num_pages=8)
    assert decoder.states is not None
    kinds = [type(layer).__name__ for layer in DynamicCache(config=decoder.model.config).layers]
    assert kinds == ["LinearAttentionLayer", "DynamicLayer", "LinearAttentionLayer"]
    made = [type(layer).__name__ for layer in decoder.states.layout.cache().layers]
    assert made[::2] == kinds[::2]
