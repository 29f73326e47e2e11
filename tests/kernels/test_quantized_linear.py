"""quantized_linear: every backend and instruction set computes what is specified, to the last bit."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from asyncthink_kernels import quantized_linear, use_backend
from asyncthink_kernels.quantized import QuantizedWeight, pack, quantize
from asyncthink_kernels.testing import compare, far_apart, normal
from targets import Target

FORMATS = {"int8": (8, False), "int4": (4, False), "int4 with offset": (4, True)}
#: rows, inputs, outputs: whole blocks and groups, and parts of them; tiles of 8, 4, 2, 1 rows; more than an item has.
SHAPES = [(1, 32, 16), (1, 576, 200), (2, 33, 17), (3, 7, 3), (15, 96, 48), (70, 64, 33), (130, 40, 1), (0, 32, 16)]


def extreme(bits: int, offset: bool, I: int, O: int, seed: int = 0) -> QuantizedWeight:
    """Integers at and between the ends of their range, whole rows at an end among them."""
    generator = torch.Generator().manual_seed(seed)
    top = 2**bits
    u = torch.randint(0, top, (O, I), generator=generator, dtype=torch.uint8)
    u[::3], u[1::5] = 0, top - 1
    scales = torch.rand(O, -(-I // 32), generator=generator).add(0.1).mul(0.01).half()
    return pack(u, scales, (scales * -7.3).half() if offset else None, bits)


def on(device: str, x: Tensor, weight: QuantizedWeight, bias: Tensor | None = None) -> Tensor:
    """The op on the device's own copies, as a tensor on the CPU."""
    there = QuantizedWeight(*(each.to(device) if isinstance(each, Tensor) else each for each in weight))
    return quantized_linear(x.to(device), there, None if bias is None else bias.to(device)).cpu()


def reference(x: Tensor, weight: QuantizedWeight, bias: Tensor | None = None) -> Tensor:
    with use_backend("reference"):
        return quantized_linear(x, weight, bias)


def bits_of(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.int32 if x.dtype == torch.float32 else torch.int16)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bitwise_the_reference_in_every_instruction_set(
    shape: tuple[int, int, int], form: str, target: Target, dtype: torch.dtype
) -> None:
    T, I, O = shape
    weight = extreme(*FORMATS[form], I, O)
    x = normal((T, I + 3), dtype, 1)[:, :I]  # rows with a gap between them
    x[:, ::7] *= 40
    for bias in (None, normal((O,), torch.float32, 2)):
        got, want = on(target.device, x, weight, bias), reference(x, weight, bias)
        assert got.dtype == dtype and got.shape == (T, O)
        assert torch.equal(bits_of(got), bits_of(want))
        wide = reference(x.double(), weight, None if bias is None else bias.double())
        limit = {torch.float32: 2e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}[dtype]
        largest = max([1.0, *wide.abs().flatten().tolist()])
        compare(got.double() / largest, wide / largest, limit=limit)


@pytest.mark.parametrize("form", FORMATS)
def test_bitwise_the_same_for_any_number_of_rows_and_threads(form: str, target: Target) -> None:
    weight, x = extreme(*FORMATS[form], 160, 90), normal((75, 160), torch.float32, 3)
    whole, before = on(target.device, x, weight), torch.get_num_threads()
    try:
        for threads, parts in ((1, (1, 2, 4, 68)), (2, (75,)), (2, (3, 5, 7, 60))):
            torch.set_num_threads(threads)
            assert torch.equal(torch.cat([on(target.device, part, weight) for part in x.split(parts)]), whole)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_a_row_gone_wrong_harms_no_other(wrong: float, target: Target, dtype: torch.dtype) -> None:
    weight, x = extreme(4, True, 100, 40), normal((9, 100), dtype, 4)
    want = on(target.device, x, weight)
    x[4, 99] = wrong
    got = on(target.device, x, weight)
    assert got[4].isnan().all()
    others = [row for row in range(9) if row != 4]
    assert torch.equal(got[others], want[others])


def test_the_largest_sums_do_not_overflow(target: Target) -> None:
    """All integers at the same end: 16-bit sums in between must hold them."""
    for bits, top in ((8, 255), (4, 15)):
        u = torch.full((16, 64), top, dtype=torch.uint8)
        u[8:] = 0
        weight = pack(u, torch.ones(16, 2).half(), None, bits)
        for x in (torch.ones(3, 64), -torch.ones(3, 64)):
            assert torch.equal(on(target.device, x, weight), reference(x, weight))
            compare(on(target.device, x, weight), x @ weight.dequantized().T, limit=1e-5)


@pytest.mark.usefixtures("unwritten_is_nan")
def test_nothing_outside_is_read_and_nothing_inside_left_out(target: Target, dtype: torch.dtype) -> None:
    """Inputs behind the last one are NaN, results and scratch begin as NaN."""
    weight, x = extreme(8, False, 45, 37), torch.full((6, 64), math.nan, dtype=dtype)
    x[:, :45] = normal((6, 45), dtype, 5)
    got = on(target.device, x[:, :45], weight)
    assert torch.equal(bits_of(got), bits_of(reference(x[:, :45].clone(), weight)))


def test_zeros_and_numbers_too_small_for_a_scale(target: Target, dtype: torch.dtype) -> None:
    weight = extreme(4, True, 64, 20)
    x = torch.zeros(2, 64, dtype=dtype)
    x[1, 3] = 1e-31
    assert (on(target.device, x, weight) == 0).all()


def test_more_dimensions_and_offsets_beyond_32_bits(target: Target) -> None:
    weight, x = extreme(8, False, 32, 24), normal((3, 32), torch.bfloat16, 6)
    want = on(target.device, x, weight)
    if target.device == "cpu":
        far = far_apart((3, 32), torch.bfloat16, 0, target.device).copy_(x)
        assert torch.equal(quantized_linear(far, weight), want)
    assert torch.equal(on(target.device, x.view(1, 3, 32), weight), want[None])


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 70), st.integers(1, 40), st.sampled_from(sorted(FORMATS)), st.integers(0, 2**20))
def test_packing_keeps_every_weight(I: int, O: int, form: str, seed: int) -> None:
    bits, offset = FORMATS[form]
    generator = torch.Generator().manual_seed(seed)
    u = torch.randint(0, 2**bits, (O, I), generator=generator, dtype=torch.uint8)
    scales = torch.rand(O, -(-I // 32), generator=generator).half()
    mins = scales.neg() if offset else None
    weight = pack(u, scales, mins, bits)
    assert (weight.bits, weight.out_features, weight.in_features) == (bits, O, I)
    assert torch.equal(weight.integers(), u)
    assert torch.equal(weight.per_group(weight.scales), scales)
    per_weight = scales.float().repeat_interleave(32, 1)[:, :I]
    shifted = u.float() - (1 if offset else 2 ** (bits - 1))
    torch.testing.assert_close(weight.dequantized(), shifted * per_weight, rtol=1e-6, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 70), st.integers(1, 20), st.floats(-3, 2), st.integers(0, 2**20))
def test_quantized_weights_are_near(I: int, O: int, size: float, seed: int) -> None:
    """Half a step off at most, beside what float16 scales round; over a group for 4 bits, which may clip a weight."""
    weight = 10**size * torch.randn(O, I, generator=torch.Generator().manual_seed(seed))
    groups = torch.nn.functional.pad(weight[None], (0, -I % 32), mode="replicate").view(O, -1, 32)
    largest, spread = groups.abs().amax(2), groups.amax(2) - groups.amin(2)
    step = (largest / 127).repeat_interleave(32, 1)[:, :I]
    error = quantize(weight, 8).dequantized() - weight
    assert (error.abs() <= step * 0.5 + weight.abs() * 2**-10 + 127 * 2**-25).all()
    rounding = 1e-6 * groups.square().sum() + groups.numel() * 1e-11
    for offset, bound in ((True, spread / 30), (False, largest / 8)):
        error = quantize(weight, 4, offset=offset).dequantized() - weight
        assert error.square().sum() <= 1.01 * 32 * bound.square().sum() + rounding


def arguments() -> dict[str, Any]:
    weight = extreme(4, True, 40, 20)
    return {"x": normal((3, 40), torch.float32, 0), "weight": weight, "bias": torch.zeros(20)}


METADATA = {
    "x with other inputs": ("quants", {"x": torch.zeros(3, 70)}),
    "x of integers": ("x", {"x": torch.zeros(3, 40, dtype=torch.int32)}),
    "x with a stride": ("x", {"x": torch.zeros(40, 3).T}),
    "x that requires grad": ("x", {"x": torch.zeros(3, 40, requires_grad=True)}),
    "bias of bfloat16": ("bias", {"bias": torch.zeros(20).bfloat16()}),
    "bias of other outputs": ("bias", {"bias": torch.zeros(19)}),
    "scales of float32": ("scales", {"scales": lambda w: w.scales.float()}),
    "quants of int8": ("quants", {"quants": lambda w: w.quants.view(torch.int8)}),
    "quants with a stride": ("quants", {"quants": lambda w: w.quants.transpose(0, 1).contiguous().transpose(0, 1)}),
    "mins with other groups": ("mins", {"mins": lambda w: w.mins[:, :1]}),
    "mins beside 8 bits": ("mins", {"quants": lambda w: torch.cat([w.quants, w.quants], 2)}),
    "other outputs": ("quants", {"out_features": lambda w: 40}),
}


@pytest.mark.parametrize("name", METADATA)
def test_bad_metadata_names_the_tensor(name: str) -> None:
    culprit, changes = METADATA[name]
    given = arguments()
    for field, change in changes.items():
        if field in given:
            given[field] = change
        else:
            given["weight"] = given["weight"]._replace(**{field: change(given["weight"])})
    with pytest.raises(ValueError, match=rf"quantized_linear: {culprit} must .*, got "):
        quantized_linear(**given)


def test_weights_that_have_no_scale_are_refused() -> None:
    for weight in (torch.full((4, 32), math.nan), torch.full((4, 32), 1e9)):
        for bits in (8, 4):
            with pytest.raises(ValueError, match="weight: expected finite numbers in the range of float16 scales"):
                quantize(weight, bits)
    with pytest.raises(ValueError, match="integers: expected uint8 of 4 bits"):
        pack(torch.full((1, 32), 16, dtype=torch.uint8), torch.ones(1, 1).half(), None, 4)
    with pytest.raises(ValueError, match=r"scales: expected float16 \[1, 1\]"):
        pack(torch.zeros(1, 32, dtype=torch.uint8), torch.ones(1, 2).half(), None, 8)
    with pytest.raises(ValueError, match="bits: expected 8, or 4"):
        quantize(torch.ones(2, 32), 3)


def test_opcheck() -> None:
    for form in FORMATS.values():
        weight = extreme(*form, 40, 20)
        given = (normal((3, 40), torch.float32, 0), weight.quants, weight.scales, weight.mins, torch.zeros(20), 20)
        torch.library.opcheck(torch.ops.asyncthink.quantized_linear.default, given)
