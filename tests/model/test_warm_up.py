"""Steps recorded ahead: later ones have the bits of the model itself, and nothing of it stays in the cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncthink.model import recorded
from asyncthink.model.decoder import Decoder
from asyncthink.model.warm_up import record_decoding, why_not_recorded
from asyncthink_kernels import use_backend
from asyncthink_kernels.ops.step_program import native
from tiny_models import tiny, tokens

pytestmark = pytest.mark.skipif(native() is None, reason="the native CPU kernels were not built")
SIZES: dict[str, Any] = {"page_size": 4, "num_pages": 20, "chunk": 8}


def test_the_next_steps_run_by_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama", dtype=torch.bfloat16, num_hidden_layers=2)
    warm, cold = Decoder(model, **SIZES), Decoder(model, record=False, **SIZES)
    warm.storage.poison()
    assert why_not_recorded(warm) is None
    assert [record_decoding(warm, agents) for agents in (1, 2, 3)] == [True] * 3
    assert warm.cache.used_pages == 0 and not warm.cache.branches
    warm.cache.check()
    assert warm.recorded is not None
    programs = warm.recorded.programs
    monkeypatch.setattr(recorded, "record", None)
    assert record_decoding(warm, 2) and warm.recorded.programs == programs  # it is known already
    branches = [[decoder.cache.root() for _ in range(3)] for decoder in (warm, cold)]
    for seed, agents in enumerate((3, 1, 2, 3, 2, 2)):
        rows = [
            decoder.forward(tokens(agents, seed), decoder.cache.plan([(b, 1) for b in own[:agents]]), [*range(agents)])
            for decoder, own in zip((warm, cold), branches, strict=True)
        ]
        assert torch.equal(*rows)
    assert set(warm.recorded.programs) == set(programs)


@settings(max_examples=15)
@given(st.integers(1, 12), st.integers(0, 20))
def test_the_cache_is_as_before(agents: int, held: int) -> None:
    decoder = DECODER
    branch = decoder.cache.root()
    if held:
        decoder.forward(tokens(held, 1), decoder.cache.plan([(branch, held)]), [held - 1])
    used, before = decoder.cache.used_pages, decoder.cache.slots(branch)
    keys = decoder.storage.groups[0].k.flatten(1, 2)[:, before].clone()
    record_decoding(decoder, agents)
    assert decoder.cache.used_pages == used and decoder.cache.branches == (branch,)
    assert torch.equal(decoder.cache.slots(branch), before)
    assert torch.equal(decoder.storage.groups[0].k.flatten(1, 2)[:, before], keys)
    decoder.cache.check()
    decoder.cache.release(branch)


DECODER = Decoder(tiny("qwen3", num_hidden_layers=1), **SIZES | {"num_pages": 10})


def test_without_room_nothing_is_recorded() -> None:
    decoder = Decoder(tiny("llama", num_hidden_layers=1), **SIZES | {"num_pages": 2})
    assert record_decoding(decoder, 2) and not record_decoding(decoder, 3)
    assert decoder.cache.used_pages == 0 and why_not_recorded(decoder) is None


def test_what_is_never_recorded() -> None:
    experts = Decoder(tiny("gpt2"), **SIZES)
    assert not record_decoding(experts, 1) and experts.cache.used_pages == 0
    assert experts.recorded is not None and why_not_recorded(experts) == experts.recorded.reason
    off = Decoder(tiny("llama", num_hidden_layers=1), record=False, **SIZES)
    assert not record_decoding(off, 1) and why_not_recorded(off) == "not asked for, or not on a CPU"
    on = Decoder(tiny("llama", num_hidden_layers=1), **SIZES)
    with use_backend("reference"):
        assert not record_decoding(on, 1) and why_not_recorded(on) == "the native CPU kernels do not run here"
