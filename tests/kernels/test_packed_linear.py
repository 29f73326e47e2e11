"""packed_linear: every backend and instruction set computes the layer; rows do not depend on each other."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from asyncthink_kernels import packed_linear, use_backend
from asyncthink_kernels.ops.packed_linear import run_packed_linear
from asyncthink_kernels.packed import pack_linear, unpack_linear
from asyncthink_kernels.testing import compare, normal
from targets import Target

#: rows, inputs, outputs: whole blocks and parts of them; tiles of 8, 4, 2, 1 rows; more than an item has.
SHAPES = [(1, 32, 32), (1, 576, 200), (2, 34, 17), (3, 6, 3), (15, 96, 64), (70, 64, 33), (0, 32, 16)]
WIDE_TO = {torch.float32: 2e-6, torch.bfloat16: 8e-3}


@pytest.mark.parametrize("precision", WIDE_TO, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_layer(shape: tuple[int, int, int], precision: torch.dtype, target: Target) -> None:
    T, I, O = shape
    weight = normal((O, I), precision, 0)
    packed = pack_linear(weight)
    assert torch.equal(unpack_linear(packed, O), weight)
    x = normal((T, I + 3), precision, 1)[:, :I]  # rows with a gap between them
    for bias in (None, normal((O,), precision, 2)):
        got = packed_linear(x, packed, O, bias)
        assert got.dtype == precision and got.shape == (T, O)
        wide = x.double() @ weight.double().T + (0 if bias is None else bias.double())
        largest = max([1.0, *wide.abs().flatten().tolist()])
        compare(got.double() / largest, wide / largest, limit=WIDE_TO[precision])


@pytest.mark.parametrize("precision", WIDE_TO, ids=str)
def test_bitwise_the_same_for_any_number_of_rows_and_threads(precision: torch.dtype, target: Target) -> None:
    packed, x = pack_linear(normal((90, 160), precision, 0)), normal((75, 160), precision, 3)
    whole, before = packed_linear(x, packed, 90), torch.get_num_threads()
    try:
        for threads, parts in ((1, (1, 2, 4, 68)), (2, (75,)), (2, (3, 5, 7, 60))):
            torch.set_num_threads(threads)
            assert torch.equal(torch.cat([packed_linear(part, packed, 90) for part in x.split(parts)]), whole)
    finally:
        torch.set_num_threads(before)


@given(
    T=st.integers(0, 20), pairs=st.integers(1, 40), O=st.integers(1, 70), precision=st.sampled_from(list(WIDE_TO)),
    seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_any_sizes(T: int, pairs: int, O: int, precision: torch.dtype, seed: int) -> None:
    weight, x = normal((O, 2 * pairs), precision, seed), normal((T, 2 * pairs), precision, seed + 1)
    got = run_packed_linear(x[None], pack_linear(weight), O)[0]
    wide, terms = x.double() @ weight.double().T, x.double().abs() @ weight.double().abs().T
    assert ((got.double() - wide).abs() <= WIDE_TO[precision] * (wide.abs() + 1e-3 * terms + 1e-6) + 1e-6 * terms).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(2, 6)}, "packed"),
        ({"x": torch.zeros(2, 8).bfloat16()}, "packed"),
        ({"x": torch.zeros(8, 2).T}, "contiguous in its last dimension"),
        ({"out_features": 40}, "packed"),
        ({"bias": torch.zeros(4)}, "bias"),
    ],
    ids=str,
)
def test_what_does_not_fit(change: dict[str, Tensor], message: str) -> None:
    fitting = {"x": torch.zeros(2, 8), "packed": pack_linear(torch.zeros(5, 8)), "out_features": 5, "bias": None}
    packed_linear(**fitting)
    with pytest.raises(ValueError, match=message):
        packed_linear(**fitting | change)
    with pytest.raises(ValueError, match=r"bfloat16 with an even I, got \[3, 5\]"):
        pack_linear(torch.zeros(3, 5).bfloat16())


def test_a_gradient_is_refused() -> None:
    with pytest.raises(ValueError, match="x must not require grad"):
        packed_linear(torch.zeros(1, 2, requires_grad=True), pack_linear(torch.zeros(1, 2)), 1)
    with use_backend("reference"), torch.no_grad():
        packed_linear(torch.zeros(1, 2, requires_grad=True), pack_linear(torch.zeros(1, 2)), 1)
