"""Recorded steps: the bits of the model itself, whatever the steps; a changed model is noticed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from recorded_pair import SIZES, Pair
from torch import nn
from transformers.models.llama import modeling_llama
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

from asyncthink.model import recorded
from asyncthink.model.decoder import Decoder
from asyncthink_kernels import use_backend
from asyncthink_kernels.ops.step_program import native
from tiny_models import FAMILIES, eager, same, tiny, tokens

pytestmark = pytest.mark.skipif(native() is None, reason="the native CPU kernels were not built")

#: Families whose passes take tensors from elsewhere than the model.
NOT_RECORDED = {"gpt2"}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_keeps_its_bits(family: str) -> None:
    pair = Pair(tiny(family, dtype=torch.bfloat16), pack=True)
    pair.step((0, 9))
    pair.fork(0, at=6)
    pair.decode(6, 0, 1)
    steps = pair.recording.recorded
    assert steps is not None
    if family in NOT_RECORDED:
        assert steps.reason is not None and not pair.programs
    else:
        assert steps.reason is None and pair.programs == 1
        layers = len(pair.recording.storage.groups) and sum(g.k.shape[0] for g in pair.recording.storage.groups)
        assert steps.programs[0].native > 5 * layers


@pytest.mark.parametrize("options", [{"pack": True}, {}, {"weights": "int8"}, {"weights": "int4"}], ids=str)
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
def test_forks_joins_and_rows_of_all_kinds(
    options: dict[str, Any], precision: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorded, "OTHERS", 2)
    pair = Pair(tiny("llama", dtype=precision, num_hidden_layers=2), **options)
    pair.step((0, 7))
    pair.fork(0)
    pair.fork(0, at=5)
    pair.decode(5, 0)
    pair.decode(5, 0, 1, 2)
    for _ in range(5):
        pair.step((0, 1), (1, 3), rows=[0, 3])
    assert pair.programs == 3
    start = pair.branches[0][1].length - 6
    pair.join(0, 1, start, start + 3, "append")
    pair.decode(2, 0, 1, 2)
    pair.join(0, 1, start, start + 2, "link")  # angles of keys elsewhere
    pair.decode(3, 0, 1, 2)
    pair.join(2, 1, start, start + 4, "link")
    pair.decode(3, 0, 1, 2)
    for _ in range(5):
        pair.step((1, 2), rows=[])
    assert pair.programs == 4
    assert "4 programs" in pair.recording.explain()["recorded"]


def test_prompts_are_recorded_late() -> None:
    pair = Pair(tiny("llama", num_hidden_layers=1))
    pair.decode(5, 0)
    for _ in range(recorded.OTHERS):
        pair.step((0, 3), rows=[2])
    assert pair.programs == 1
    for _ in range(2):
        pair.step((0, 3), rows=[2])
    assert pair.programs == 2


def test_weights_that_change_in_place_are_read() -> None:
    pair = Pair(tiny("qwen3", num_hidden_layers=1), pack=True)
    pair.decode(5, 0)
    before = pair.programs
    optimizer = torch.optim.SGD(pair.model.parameters(), lr=0.1)
    pair.model(tokens(5, 1)[None]).logits.square().sum().backward()
    optimizer.step()
    pair.decode(2, 0)
    pair.model.load_state_dict({name: 1.1 * value for name, value in pair.model.state_dict().items()})
    pair.decode(2, 0)
    assert pair.programs == before == 1


def replace_parameter(model: Any) -> None:
    norm = model.model.layers[0].input_layernorm
    norm.weight = nn.Parameter(norm.weight.detach() * 1.5)


def move_weights(model: Any) -> None:
    for parameter in model.parameters():
        parameter.data = parameter.data * 1.5


def replace_module(model: Any) -> None:
    model.model.layers[0].mlp.act_fn = nn.Tanh()


def hook(model: Any) -> None:
    model.model.layers[0].mlp.register_forward_hook(lambda module, args, output: 2 * output)


def own_forward(model: Any) -> None:
    mlp = model.model.layers[0].mlp
    plain = mlp.forward
    mlp.forward = lambda x: 2 * plain(x)


@pytest.mark.parametrize("change", [replace_parameter, move_weights, replace_module, hook, own_forward])
def test_other_changes_end_the_programs(change: Callable[[Any], None]) -> None:
    pair = Pair(tiny("llama", num_hidden_layers=1), pack=True)
    pair.decode(5, 0)
    assert pair.programs == 1
    change(pair.model)
    pair.decode(6, 0)
    steps = pair.recording.recorded
    assert steps is not None and pair.programs == (change not in (hook, own_forward))
    assert (steps.reason is None) == (pair.programs == 1)


def test_hooks_of_other_modules_and_hooks_that_are_gone_end_nothing() -> None:
    pair = Pair(tiny("llama", num_hidden_layers=1))
    pair.decode(5, 0)
    assert pair.recording.recorded is not None
    before = pair.recording.recorded.programs
    nn.Linear(2, 2).register_forward_hook(lambda module, args, output: 2 * output)
    pair.model.register_forward_pre_hook(lambda module, args: None).remove()
    pair.decode(2, 0)
    assert pair.recording.recorded.programs == before and len(before) == 1
    hook(pair.model)
    pair.decode(2, 0)
    assert pair.recording.recorded.reason == "model.layers.0.mlp has hooks"


def test_a_hook_of_every_module_ends_the_programs() -> None:
    pair = Pair(tiny("llama", num_hidden_layers=1))
    pair.decode(5, 0)
    with nn.modules.module.register_module_forward_hook(lambda module, args, output: None):
        pair.decode(3, 0)
        steps = pair.recording.recorded
        assert steps is not None and str(steps.reason).startswith("all modules have hooks")


def test_a_forward_replaced_on_a_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody's function ends the recording; one of transformers' is recorded anew."""
    pair = Pair(tiny("llama", num_hidden_layers=1))
    pair.decode(5, 0)
    steps = pair.recording.recorded
    assert steps is not None
    before = steps.programs
    monkeypatch.setattr(modeling_llama.LlamaRMSNorm, "forward", Qwen2RMSNorm.forward)
    pair.decode(1, 0)
    assert len(before) == 1 and not steps.programs
    pair.decode(5, 0)
    assert steps.reason is None and pair.programs == 1
    plain = modeling_llama.LlamaMLP.forward
    monkeypatch.setattr(modeling_llama.LlamaMLP, "forward", functools.wraps(plain)(lambda mlp, x: 2 * plain(mlp, x)))
    pair.decode(3, 0)
    assert steps.reason == (
        "model.layers.0.mlp is a transformers.models.llama.modeling_llama.LlamaMLP with a forward of test_recorded"
    )


def test_a_function_replaced_that_a_forward_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair(tiny("llama", num_hidden_layers=1))
    pair.decode(5, 0)
    plain = modeling_llama.apply_rotary_pos_emb
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", lambda q, k, *angles: plain(2 * q, k, *angles))
    pair.decode(1, 0)
    assert pair.programs == 0
    pair.decode(5, 0)
    assert pair.programs == 1


def test_refresh_records_again() -> None:
    pair = Pair(tiny("llama", num_hidden_layers=1))
    pair.decode(5, 0)
    pair.model.config.rms_norm_eps = 1.0  # read when the model was made
    pair.model.model.norm.variance_epsilon = 1.0  # type: ignore[union-attr]
    for decoder in pair.decoders:
        decoder.refresh()
    pair.decode(5, 0)
    assert pair.programs == 1


def test_new_weights_in_place_keep_the_programs() -> None:
    pair = Pair(tiny("llama", num_hidden_layers=1))
    pair.decode(5, 0)
    steps = pair.recording.recorded
    assert steps is not None
    programs = steps.programs
    with torch.no_grad():
        for parameter in pair.model.parameters():
            parameter.mul_(1.5)
    for decoder in pair.decoders:
        decoder.refresh(weights_only=True)
    pair.decode(5, 0)
    assert steps.programs == programs


class Own(nn.SiLU):
    """Somebody's module, whose Python may do something else in the next step."""


def test_modules_of_unknown_classes_are_not_recorded() -> None:
    model: Any = tiny("llama", num_hidden_layers=1)
    model.model.layers[0].mlp.act_fn = Own()
    decoder = Decoder(model, **SIZES)
    assert decoder.recorded is not None
    assert str(decoder.recorded.reason).startswith("model.layers.0.mlp.act_fn is a test_recorded.Own")
    assert "act_fn" in decoder.explain()["recorded"]


def test_a_program_of_other_bits_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    real = recorded.StepProgram.run
    monkeypatch.setattr(recorded.StepProgram, "run", lambda *args, **given: real(*args, **given) * 1.01)
    pair = Pair(tiny("llama", num_hidden_layers=1))
    pair.decode(6, 0)
    assert pair.programs == 0
    assert pair.recording.recorded is not None
    assert pair.recording.recorded.reason == "its program gives other bits than the model itself"


def test_the_least_recently_used_program_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded, "MAX_PROGRAMS", 2)
    pair = Pair(tiny("llama", num_hidden_layers=1))
    for rows in (1, 2, 3):
        for _ in range(5):
            pair.step((0, rows))
    assert pair.programs == 2


def test_programs_lie_in_the_same_memory() -> None:
    pair = Pair(tiny("llama", num_hidden_layers=1))
    pair.decode(4, 0)
    assert pair.recording.recorded is not None
    memory = pair.recording.recorded.memory
    held = memory.nbytes
    assert held
    for rows in (4, 1, 2, 3, 4, 1, 2, 3, 4, 2):
        for _ in range(4):
            pair.step((0, rows))
    assert pair.programs == 4
    assert pair.recording.recorded.memory is memory
    four = memory.nbytes
    for rows in (3, 2, 1):
        for _ in range(4):
            pair.step((0, rows))
    assert memory.nbytes == four


def test_a_named_backend_and_large_steps_run_the_model() -> None:
    model = tiny("llama", num_hidden_layers=1)
    decoder = Decoder(model, **SIZES | {"num_pages": 200})
    branch = decoder.cache.root()
    with use_backend("reference"):
        for _ in range(5):
            decoder.forward(tokens(1, 1), decoder.cache.plan([(branch, 1)]), [0])
    for _ in range(5):
        decoder.forward(tokens(65, 1), decoder.cache.plan([(branch, 65)]), [64])
    assert decoder.recorded is not None and not decoder.recorded.programs
    decoder.cache.release(branch)
    branch, context = decoder.cache.root(), tokens(12, 5)
    for number in range(12):
        row = decoder.forward(context[number : number + 1], decoder.cache.plan([(branch, 1)]), [0])
    same(row, eager(model, context)[-1:])
    assert len(decoder.recorded.programs) == 1


def test_training_between_steps() -> None:
    pair = Pair(tiny("llama", num_hidden_layers=1, attention_dropout=0.5).train())
    pair.decode(6, 0)
    assert pair.programs == 1 and pair.model.training
