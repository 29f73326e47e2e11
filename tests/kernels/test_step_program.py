"""NativeProgram: what its ops write has the bits of torch's own calls; linear layers and attention those of the ops."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from asyncthink_kernels import append_kv, packed_linear, quantized_linear, tree_attention, use_backend
from asyncthink_kernels.cache import TreeCache
from asyncthink_kernels.ops import step_program
from asyncthink_kernels.ops.step_program import NativeProgram, lanes_of_sums, native
from asyncthink_kernels.packed import pack_linear
from asyncthink_kernels.quantized import quantize
from asyncthink_kernels.testing import normal

pytestmark = pytest.mark.skipif(native() is None, reason="the native CPU kernels were not built")
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def run(program: NativeProgram) -> None:
    program.run(*step_program._NO_STEP)


def bits(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.int32 if x.dtype == torch.float32 else torch.int16)


def same(got: Tensor, expected: Tensor) -> None:
    assert got.dtype == expected.dtype and torch.equal(bits(got), bits(expected))


@pytest.mark.parametrize("precision", FLOATS, ids=str)
@pytest.mark.parametrize("I", [8, 64, 100, 576, 2048, 5000])
def test_norm(precision: torch.dtype, I: int) -> None:
    lanes = lanes_of_sums(I)
    assert lanes in (8, 16), "torch sums in an order that is not known: steps would run without this op"
    x, weight = 3 * normal((7, 3, I), precision, 0), normal((I,), precision, 1)
    y, program = torch.empty_like(x), NativeProgram()
    program.norm(x, weight, y, 1e-5, lanes)
    run(program)
    wide = x.float()
    scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)
    same(y, weight * scaled.to(precision))


@pytest.mark.parametrize("precision", FLOATS, ids=str)
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_norm_that_rounds_at_the_end(precision: torch.dtype, offset: float) -> None:
    lanes = lanes_of_sums(100)
    assert lanes is not None
    x, weight = 3 * normal((7, 3, 100), precision, 0), normal((100,), precision, 1)
    weight[:2] = torch.tensor([0.0, -0.0])
    y, program = torch.empty_like(x), NativeProgram()
    program.norm(x, weight, y, 1e-5, lanes, wide=True, offset=offset)
    run(program)
    wide, scale = x.float(), weight + 1.0 if precision == torch.float32 else 1.0 + weight.float()
    scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)
    same(y, (scaled * (scale if offset else weight.float())).to(precision))


@pytest.mark.parametrize("precision", FLOATS, ids=str)
@pytest.mark.parametrize("divisor", [1.0, 128**0.5])
@pytest.mark.parametrize("I", [8, 100, 128])
def test_l2_norm(precision: torch.dtype, divisor: float, I: int) -> None:
    lanes = lanes_of_sums(I)
    assert lanes is not None
    x = 3 * normal((5, 3, 2 * I), precision, 0)[..., :I]
    y, program = torch.empty(5, 3, I), NativeProgram()
    program.l2_norm(x, y, 1e-6, divisor, lanes)
    run(program)
    wide = x.to(torch.float32, memory_format=torch.contiguous_format)
    expected = wide * torch.rsqrt((wide * wide).sum(-1, keepdim=True) + 1e-6)
    same(y, expected if divisor == 1.0 else expected / divisor)


@pytest.mark.parametrize("precision", FLOATS[1:], ids=str)
def test_gate_that_rounds_at_the_end(precision: torch.dtype) -> None:
    x, gate = 9 * normal((5, 128), precision, 0), 9 * normal((5, 128), precision, 1)
    y, program = torch.empty_like(x), NativeProgram()
    table = functional.silu(torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(precision).float())
    program.gate_wide(x, gate, table, y)
    run(program)
    same(y, (x * functional.silu(gate.float())).to(precision))


@pytest.mark.parametrize("precision", FLOATS, ids=str)
@pytest.mark.parametrize("D", [2, 64, 100])
def test_rotate(precision: torch.dtype, D: int) -> None:
    x, cos, sin = normal((5, 3, D), precision, 0), normal((5, D), precision, 1), normal((5, D), precision, 2)
    y, program = torch.empty_like(x), NativeProgram()
    program.rotate(x, cos, sin, y)
    run(program)
    turned = torch.cat((-x[..., D // 2 :], x[..., : D // 2]), -1)
    same(y, x * cos[:, None] + turned * sin[:, None])


@pytest.mark.parametrize("precision", FLOATS, ids=str)
def test_add_and_gate(precision: torch.dtype) -> None:
    a, b = 9 * normal((5, 99), precision, 0), normal((5, 120), precision, 1)[:, 3:102]
    y, program = torch.empty_like(a), NativeProgram()
    program.add(a, b, y)
    run(program)
    same(y, a + b)
    if precision == torch.float32:
        return
    table = functional.silu(torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(precision))
    program = NativeProgram()
    program.gate(a, b, table, y)
    run(program)
    same(y, functional.silu(a) * b)


@pytest.mark.parametrize("weights", ["packed", "int8", "int4"])
def test_layers_of_one_input(weights: str) -> None:
    """Three layers at once give what each gives alone, written to columns of one tensor."""
    x, whole, program = normal((5, 64), torch.bfloat16, 0), torch.full((5, 200), 7.0).bfloat16(), NativeProgram()
    layers = [normal((O, 64), torch.bfloat16, O) for O in (70, 33, 96)]
    outs = (*whole.split([70, 33, 97], 1)[:2], whole[:, 103:199])
    if weights == "packed":
        held = [pack_linear(layer) for layer in layers]
        expected = [packed_linear(x, packed, layer.shape[0]) for packed, layer in zip(held, layers, strict=True)]
        program.linears(x, [(packed, None, out) for packed, out in zip(held, outs, strict=True)])
    else:
        quants = [quantize(layer, int(weights[3])) for layer in layers]
        expected = [quantized_linear(x, weight) for weight in quants]
        program.quantized_linears(x, [(*weight[:3], None, out) for weight, out in zip(quants, outs, strict=True)])
    run(program)
    for out, want in zip(outs, expected, strict=True):
        same(out, want)
    assert (whole[:, 199:] == 7).all()


def test_attention_takes_the_plan_of_the_run() -> None:
    """Steps of one size with other plans; one of them with a shift."""
    caches = [torch.zeros(20, 4, 2, 16) for _ in range(4)]
    q, k, v = (normal((2, heads, 16), torch.float32, heads) for heads in (4, 2, 2))
    out, program = torch.empty(2, 4, 16), NativeProgram()
    program.attention(
        q, k, v, *caches[:2], out, scale=None, window=6, softcap=None, sinks=None, layer=0
    )  # fmt: skip
    tree = TreeCache(20, 4, 8)
    root = tree.root()
    tree.plan([(root, 9)])
    child = tree.fork(root, at=5)
    for step in range(4):
        if step == 2:
            tree.join(root, child, 5, 7, "link")
        plan = tree.plan([(root, 1), (child, 1)])
        K = plan.shifts.shape[0]
        angles = plan.shifts[:, None].float() * torch.tensor([1.0, 0.1])
        tables = (angles.cos(), angles.sin()) if K > 1 else None
        program.run(plan.slots, plan.tensors, [None if tables is None else (*tables, False)])
        append_kv(k, v, *caches[2:], plan.slots)
        options = {} if tables is None else {"cos": tables[0], "sin": tables[1]}
        same(out, tree_attention(q, *caches[2:], plan, window=6, **options))
        assert all(map(torch.equal, caches[:2], caches[2:]))


def test_errors_come_when_an_op_is_appended() -> None:
    program, x = NativeProgram(), torch.zeros(2, 8)
    with pytest.raises(ValueError, match="y"):
        program.add(x, x, torch.zeros(2, 7))
    with pytest.raises(ValueError, match="lanes: expected 8 or 16, got 4"):
        program.norm(x[:, None], x[0], x[:, None], 1e-5, 4)
    with pytest.raises(ValueError, match="x: expected an even D, got 7"):
        program.rotate(x[:, None, :7], x[:, :7], x[:, :7], x[:, None, :7])
    with pytest.raises(ValueError, match="gate: expected bfloat16 or float16, got float32"):
        program.gate(x, x, torch.zeros(1 << 16), x)
    with pytest.raises(ValueError, match="table: expected float32, got bfloat16"):
        program.gate_wide(x.bfloat16(), x.bfloat16(), torch.zeros(1 << 16).bfloat16(), x.bfloat16())
    with pytest.raises(ValueError, match="y: expected float32, got bfloat16"):
        program.l2_norm(x[:, None], x[:, None].bfloat16(), 1e-5, 1.0, 8)
    with pytest.raises(ValueError, match="packed"):
        program.linears(x, [(pack_linear(torch.zeros(5, 6)), None, torch.zeros(2, 5))])
    assert len(program) == 0
    with use_backend("reference"), pytest.raises(RuntimeError, match="expected the native CPU kernels"):
        NativeProgram()
