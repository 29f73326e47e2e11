"""Decoder: packed, forked and joined branches give the logits of plain eager transformers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from asyncthink.model.decoder import Decoder, DecoderError
from tiny_models import FAMILIES, eager, eager_cache, feed, joined_branches, same, spliced, tiny, tokens

ROTARY = [family for family in FAMILIES if family not in ("gpt2", "deepseek_v3")]


@pytest.fixture(scope="module")
def models() -> dict[str, nn.Module]:
    return {}


@pytest.fixture
def decoder(request: pytest.FixtureRequest, models: dict[str, nn.Module]) -> Decoder:
    """A decoder of the parametrised family, its storage poisoned; its model is shared by the tests of this file."""
    family = request.param
    model = models.setdefault(family, tiny(family))
    decoder = Decoder(model, page_size=4, num_pages=120, chunk=8)
    decoder.storage.poison()
    return decoder


@pytest.mark.parametrize("decoder", FAMILIES, indirect=True)
def test_prefill_forks_and_decode_equal_eager(decoder: Decoder) -> None:
    """Chunked prefill beside another branch, three levels of mid-page forks, and decoding, past the window."""
    model, cache = decoder.model, decoder.cache
    trunk, own, worker, grandchild = tokens(30, 1), tokens(8, 2), tokens(12, 3), tokens(6, 4)
    root, other = cache.root(), cache.root()

    (first,) = feed(decoder, (root, trunk[:11]))
    second, alone = feed(decoder, (root, trunk[11:]), (other, own))
    same(torch.cat([first, second]), eager(model, trunk))
    same(alone, eager(model, own))

    child = cache.fork(root, at=21)
    root_logits, child_logits = feed(decoder, (root, own[:3]), (child, worker[:7]))
    below = cache.fork(child, at=26)
    logits = [root_logits], [child_logits], []
    for i in range(5):
        step = feed(decoder, (below, grandchild[i : i + 1]), (root, own[3 + i : 4 + i]), (child, worker[7 + i : 8 + i]))
        for branch, new in zip((2, 0, 1), step, strict=True):
            logits[branch].append(new)
    same(torch.cat(logits[0]), eager(model, torch.cat([trunk, own]))[30:])
    same(torch.cat(logits[1]), eager(model, torch.cat([trunk[:21], worker]))[21:])
    same(torch.cat(logits[2]), eager(model, torch.cat([trunk[:21], worker[:5], grandchild[:5]]))[26:])


@pytest.mark.parametrize("decoder", FAMILIES, indirect=True)
def test_exact_join_equals_eager(decoder: Decoder) -> None:
    trunk, own, worker, after = tokens(13, 5), tokens(9, 6), tokens(6, 7), tokens(4, 8)
    root, _ = joined_branches(decoder, trunk, own, worker)
    same(
        feed(decoder, (root, torch.cat([worker, after])))[0],
        eager(decoder.model, torch.cat([trunk, own, worker, after]))[22:],
    )


@pytest.mark.parametrize(("own_length", "skip"), [(9, 2), (1, 5)], ids=["forward", "backward"])
@pytest.mark.parametrize("decoder", ROTARY, indirect=True)
def test_append_and_link_joins_equal_keys_computed_at_the_shifted_positions(
    decoder: Decoder, own_length: int, skip: int
) -> None:
    """Expected: eager attention with shifted positions for the worker. Rotary attention depends on distances only."""
    model, cache = decoder.model, decoder.cache
    trunk, own, worker, after = tokens(13, 5), tokens(own_length, 6), tokens(11, 7), tokens(6, 8)
    start, stop = 13 + skip, 13 + skip + 5
    length = 13 + own_length
    moved = eager_cache(model, torch.cat([trunk, worker]), start=length - start)
    organizer = eager_cache(model, torch.cat([trunk, own]))
    past = spliced([(organizer, 0, length), (moved, start, stop)])
    expected = eager(model, after, start=length + 5, past=past)

    results = []
    for mode in ("append", "link"):
        root, child = joined_branches(decoder, trunk, own, worker)
        decoder.join(root, child, start, stop, mode)
        below = cache.fork(root, at=root.length - 2)  # from inside the joined span
        joined, forked = feed(decoder, (root, after[:4]), (below, after[:1]))
        (rest,) = feed(decoder, (root, after[4:]))
        same(torch.cat([joined, rest]), expected)
        shorter = spliced([(organizer, 0, length), (moved, start, stop - 2)])
        same(forked, eager(model, after[:1], start=length + 3, past=shorter))
        results.append(joined)
    same(results[0], results[1], 1e-5)


@pytest.mark.parametrize("decoder", ["qwen3", "gemma3"], indirect=True)
def test_joins_of_joined_and_several_workers(decoder: Decoder) -> None:
    """Two workers linked at different shifts, one of them after an append: K is rotated twice or read twice shifted."""
    model = decoder.model
    trunk, own, worker, after = tokens(13, 5), tokens(9, 6), tokens(6, 7), tokens(4, 8)
    root, child = joined_branches(decoder, trunk, own, worker)
    second = decoder.cache.fork(root, at=13)
    feed(decoder, (second, worker.flip(0)))
    decoder.join(child, second, 13, 17, "append")
    decoder.join(root, child, 15, 23, "link")
    feed(decoder, (root, own[:1]))
    decoder.join(root, second, 14, 19, "link")
    (got,) = feed(decoder, (root, after))

    organizer = eager_cache(model, torch.cat([trunk, own]))
    first_again = eager_cache(model, torch.cat([trunk, worker]), start=7)
    second_in_first = eager_cache(model, torch.cat([trunk, worker.flip(0)]), start=13)
    past = spliced([(organizer, 0, 22), (first_again, 15, 19), (second_in_first, 13, 17)])
    eager(model, own[:1], start=30, past=past)
    second_again = eager_cache(model, torch.cat([trunk, worker.flip(0)]), start=17)
    same(got, eager(model, after, start=36, past=spliced([(past, 0, 31), (second_again, 14, 19)])))


@pytest.mark.parametrize(
    ("family", "changes", "reason"),
    [
        ("gpt2", {}, "gpt2 can only join exactly: in layer 0 V, too, depends on the position"),
        ("deepseek_v3", {}, "deepseek_v3 can only join exactly: in layer 0 a K rotated by the shift is not"),
        ("hunyuan_v1_dense", {}, "in layer 0 a K rotated by the shift is not the K of the shifted position"),
        (
            "phi3",
            {"original_max_position_embeddings": 64,
             "rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4,
                                 "long_factor": [2.0] * 4, "original_max_position_embeddings": 64,
                                 "partial_rotary_factor": 0.5}},
            "phi3 can only join exactly: its longrope RoPE changes in texts longer than 64 tokens",
        ),
        (
            "llama",
            {"max_position_embeddings": 64,
             "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "llama can only join exactly: its dynamic RoPE changes in texts longer than 64 tokens",
        ),
    ],
)  # fmt: skip
def test_other_positions_than_plain_rotary_join_exactly_only(family: str, changes: dict, reason: str) -> None:
    model = tiny(family, **changes)
    for name, parameter in model.named_parameters():
        if "layernorm" in name:  # a norm behind the rotation weighs coordinates, and only equal weights would commute
            nn.init.uniform_(parameter, 0.5, 1.5)
    decoder = Decoder(model, num_pages=40)
    assert decoder.join_modes == ("exact",)
    assert set(decoder.unavailable) == {"append", "link", "pack"}
    root, child = joined_branches(decoder, tokens(13, 5), tokens(9, 6), tokens(6, 7))
    for mode in ("append", "link"):
        with pytest.raises(DecoderError, match=reason):
            decoder.join(root, child, 13, 15, mode)
    assert root.length == 22


def test_a_text_longer_than_the_positions_is_refused() -> None:
    decoder = Decoder(tiny("gpt2", max_position_embeddings=40), num_pages=4)
    assert decoder.max_length == 40
    root = decoder.cache.root()
    feed(decoder, (root, tokens(40, 1)))
    with pytest.raises(ValueError, match="takes 40 positions, got position 40"):
        feed(decoder, (root, tokens(1, 1)))
    assert Decoder(tiny("qwen3"), num_pages=4).max_length is None
