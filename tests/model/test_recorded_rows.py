"""Recorded passes of models with recurrent layers: the bits of the model itself in logits, K, V and states."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from asyncthink.model import recorded_rows
from asyncthink.model.decoder import Decoder
from asyncthink.model.recorder import NotRecordableError
from asyncthink_kernels.cache import StatefulCache
from asyncthink_kernels.ops.step_program import native
from tiny_hybrids import HYBRIDS, tiny_hybrid
from tiny_models import tokens

pytestmark = pytest.mark.skipif(native() is None, reason="the native CPU kernels were not built")
SIZES: dict[str, Any] = {"page_size": 4, "num_pages": 80, "num_states": 8, "chunk": 8}


class Pair:
    """A decoder that records and one that does not, which go through the same steps; all is poisoned before."""

    def __init__(self, model: nn.Module, **options: Any) -> None:
        self.decoders = Decoder(model, **SIZES, **options), Decoder(model, record=False, **SIZES, **options)
        self.branches: list[list[Any]] = [[], []]
        self._seed = 0
        for decoder, branches in zip(self.decoders, self.branches, strict=True):
            decoder.storage.poison()
            assert decoder.states is not None
            decoder.states.poison()
            branches.append(decoder.cache.root())

    def each(self) -> list[tuple[StatefulCache, list[Any]]]:
        caches = [decoder.cache for decoder in self.decoders]
        return [(cache, b) for cache, b in zip(caches, self.branches, strict=True) if isinstance(cache, StatefulCache)]

    def root(self) -> None:
        for cache, branches in self.each():
            branches.append(cache.root())

    def fork(self, of: int, at: int | None = None) -> None:
        for cache, branches in self.each():
            branches.append(cache.fork(branches[of], at=at))

    def release(self, number: int) -> None:
        for cache, branches in self.each():
            cache.release(branches[number])

    def step(self, *work: tuple[int, int], rows: list[int] | None = None) -> Tensor:
        """The same tokens through both -> the same logits, K, V and states, to the last bit."""
        count = sum(new for _, new in work)
        self._seed += 1
        wanted = list(range(count)) if rows is None else rows
        got = []
        for decoder, branches in zip(self.decoders, self.branches, strict=True):
            plan = decoder.cache.plan([(branches[number], new) for number, new in work])
            got.append(decoder.forward(tokens(count, self._seed), plan, wanted))
        assert torch.equal(*got)
        ours, theirs = self.decoders
        for one, other in zip(ours.storage.groups, theirs.storage.groups, strict=True):
            same((one.k, one.v), (other.k, other.v))
        assert ours.states is not None and theirs.states is not None
        same(tuple(ours.states.tensors.values()), tuple(theirs.states.tensors.values()))
        return got[0]

    def decode(self, steps: int, *branches: int) -> None:
        for _ in range(steps):
            self.step(*((branch, 1) for branch in branches))

    @property
    def programs(self) -> int:
        steps = self.decoders[0].recorded
        assert steps is not None
        return len(steps.programs)


def same(got: Any, expected: Any) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("family", HYBRIDS)
def test_every_family_keeps_its_bits(family: str, precision: torch.dtype) -> None:
    """One and two rows; slots with a gap between them and in another order; forks and an exact join midway."""
    pair = Pair(tiny_hybrid(family, dtype=precision), pack=True)
    pair.step((0, 7))
    pair.root()
    pair.step((1, 3))
    pair.fork(0)
    pair.decode(4, 0)
    pair.decode(4, 2, 0)
    pair.release(1)
    pair.decode(2, 0, 2)
    pair.fork(2)  # takes the slot between them when it goes on
    pair.decode(2, 3, 0)
    pair.step((3, 1), (0, 4), rows=[0, 4])
    pair.decode(2, 2, 3)
    steps = pair.decoders[0].recorded
    assert steps is not None and steps.reason is None and pair.programs == 2


def test_native_ops_work_in_the_slots() -> None:
    pair = Pair(tiny_hybrid("qwen3_5", dtype=torch.bfloat16))
    pair.step((0, 5))
    pair.decode(5, 0)
    (program,) = pair.decoders[0].recorded.programs  # type: ignore[union-attr]
    assert program.ops["delta_rule"] == program.ops["conv_update"] == 2
    assert not program.ops["load_states"] and not program.ops["store_states"]
    assert program.seconds["states"] > 0
    assert "1 programs" in pair.decoders[0].explain()["recorded"]


def test_a_program_of_other_states_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model's own states stand after the comparison, and go on."""
    real = recorded_rows.RecordedRows._replayed

    def other(self: Any, program: Any, step: Any, rows: Tensor) -> Tensor:
        logits = real(self, program, step, rows)
        next(iter(self._storage.tensors.values()))[step.slots[0]] += 1
        return logits

    monkeypatch.setattr(recorded_rows.RecordedRows, "_replayed", other)
    pair = Pair(tiny_hybrid("qwen3_5"))
    pair.step((0, 5))
    pair.decode(6, 0)
    assert pair.programs == 0
    assert pair.decoders[0].recorded.reason == "its program gives other bits than the model itself"  # type: ignore[union-attr]


def test_a_pass_that_cannot_be_recorded_leaves_states_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(hooked: Any, step: Any, cache: Any, *rest: Any) -> None:
        cache.layers[0].conv_states[0].fill_(7.0)
        raise NotRecordableError("it does what nobody knows")

    monkeypatch.setattr(recorded_rows, "record_rows", fails)
    pair = Pair(tiny_hybrid("qwen3_5"))
    pair.step((0, 5))
    pair.decode(4, 0)
    assert pair.decoders[0].explain()["recorded"] == "no: it does what nobody knows"


@pytest.mark.parametrize("options", [{}, {"weights": "int8"}], ids=str)
def test_other_linear_layers_and_many_rows(options: dict[str, Any]) -> None:
    pair = Pair(tiny_hybrid("qwen3_5", dtype=torch.bfloat16, hidden_size=64, intermediate_size=64), **options)
    pair.step((0, 5))
    for _ in range(5):
        pair.fork(0)
    pair.decode(5, 0, 1, 2, 3, 4, 5)
    pair.step((0, 1), (3, 1), rows=[1])
    assert pair.programs == 1


def test_weights_that_change_in_place_are_read() -> None:
    model = tiny_hybrid("qwen3_5")
    pair = Pair(model, pack=True)
    pair.step((0, 5))
    pair.decode(5, 0)
    model.load_state_dict({name: 1.1 * value for name, value in model.state_dict().items()})
    pair.decode(2, 0)
    assert pair.programs == 1
