"""Recorded passes of models with recurrent layers: the bits of the model itself in logits, K, V and states."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from recorded_pair import Pair
from torch import Tensor, nn

from asyncthink.model import recorded_rows
from asyncthink.model.recorder import NotRecordableError
from asyncthink_kernels.ops.step_program import native
from tiny_hybrids import HYBRIDS, tiny_hybrid

pytestmark = pytest.mark.skipif(native() is None, reason="the native CPU kernels were not built")


def pair_of(model: nn.Module, **options: Any) -> Pair:
    return Pair(model, num_states=8, **options)


@pytest.mark.parametrize(
    ("family", "precision"), [*((family, torch.bfloat16) for family in HYBRIDS), ("qwen3_5", torch.float32)], ids=str
)
def test_every_family_keeps_its_bits(family: str, precision: torch.dtype) -> None:
    """One and two rows; slots with a gap between them and in another order; forks and an exact join midway."""
    pair = pair_of(tiny_hybrid(family, dtype=precision), pack=True)
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
    pair = pair_of(tiny_hybrid("qwen3_5", dtype=torch.bfloat16))
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
    pair = pair_of(tiny_hybrid("qwen3_5"))
    pair.step((0, 5))
    pair.decode(6, 0)
    assert pair.programs == 0
    assert pair.decoders[0].recorded.reason == "its program gives other bits than the model itself"  # type: ignore[union-attr]


def test_a_pass_that_cannot_be_recorded_leaves_states_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(hooked: Any, step: Any, cache: Any, *rest: Any) -> None:
        cache.layers[0].conv_states[0].fill_(7.0)
        raise NotRecordableError("it does what nobody knows")

    monkeypatch.setattr(recorded_rows, "record_rows", fails)
    pair = pair_of(tiny_hybrid("qwen3_5"))
    pair.step((0, 5))
    pair.decode(4, 0)
    assert pair.decoders[0].explain()["recorded"] == "no: it does what nobody knows"


@pytest.mark.parametrize("options", [{}, {"weights": "int8"}], ids=str)
def test_other_linear_layers_and_many_rows(options: dict[str, Any]) -> None:
    pair = pair_of(tiny_hybrid("qwen3_5", dtype=torch.bfloat16, hidden_size=64, intermediate_size=64), **options)
    pair.step((0, 5))
    for _ in range(5):
        pair.fork(0)
    pair.decode(5, 0, 1, 2, 3, 4, 5)
    pair.step((0, 1), (3, 1), rows=[1])
    assert pair.programs == 1


def test_weights_that_change_in_place_are_read() -> None:
    model = tiny_hybrid("qwen3_5")
    pair = pair_of(model, pack=True)
    pair.step((0, 5))
    pair.decode(5, 0)
    model.load_state_dict({name: 1.1 * value for name, value in model.state_dict().items()})
    pair.decode(2, 0)
    assert pair.programs == 1
