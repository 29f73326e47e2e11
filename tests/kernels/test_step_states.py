"""NativeProgram's ops on recurrent states: torch's bits in the slots of the rows, and other slots left alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from asyncthink_kernels.backends import native as backend
from asyncthink_kernels.ops import step_program
from asyncthink_kernels.ops.step_program import NativeProgram, conv_is_fused, delta_rule, native, plain_columns
from asyncthink_kernels.testing import normal

pytestmark = pytest.mark.skipif(native() is None, reason="the native CPU kernels were not built")
ISAS = backend._cpu.usable_isas() if native() is not None else []
SLOTS = (5, 0, 3)  # with gaps, in any order


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = backend._cpu.isa()
    backend._cpu.set_isa(request.param)
    yield request.param
    backend._cpu.set_isa(before)


def run(program: NativeProgram, slots: tuple[int, ...] = SLOTS) -> None:
    program.run(*step_program._NO_STEP, torch.tensor(slots))


def poisoned(*shape: int) -> Tensor:
    """[7, ...]: random in the slots of the rows, else NaN."""
    states = torch.full((7, *shape), torch.nan)
    states[list(SLOTS)] = normal((len(SLOTS), *shape), torch.float32, 9)
    return states


def same(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("decay_per_row", [False, True])
@pytest.mark.parametrize(
    "shape",
    [(4, 128, 128), (2, 16, 64), (2, 8, 8), (3, 33, 100), (1, 64, 16), (1, 300, 256), (2, 5, 1)],
    ids=str,
)
def test_delta_rule(shape: tuple[int, int, int], decay_per_row: bool, isa: str) -> None:
    H, K, V = shape
    B = len(SLOTS)
    plain = plain_columns(B, H, K, V, torch.get_num_threads())
    assert plain is not None, "torch sums in an order that is not known: steps would run without this op"
    q, k, v = (
        normal((B, H, K), torch.float32, 0),
        normal((B, H, K), torch.float32, 1),
        normal((B, H, V), torch.float32, 2),
    )
    beta, decay = normal((B, H, 1), torch.float32, 3), normal((B, H, K if decay_per_row else 1, 1), torch.float32, 4)
    states, rest = poisoned(H, K, V), [1, 2, 4, 6]
    expected, out = delta_rule(states[list(SLOTS)], decay, q, k, v, beta)
    got, program = torch.empty(B, H, V), NativeProgram()
    program.delta_rule(states, decay[..., 0].expand(B, H, K), q, k, v, beta[..., 0], got, plain)
    run(program)
    same(got, out)
    same(states[list(SLOTS)], expected)
    assert states[rest].isnan().all()


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
def test_states_are_loaded_from_slots_and_stored_there(precision: torch.dtype) -> None:
    """Also where a state is larger than what a thread draws at a time, and no multiple of it."""
    for F in (3, 40_001):
        states, x = poisoned(F).to(precision), torch.empty(len(SLOTS), F, dtype=precision)
        before, program = states.clone(), NativeProgram()
        program.load_states(states, x)
        run(program)
        same(x, before[list(SLOTS)])
        program = NativeProgram()
        program.store_states(states, 2 * x)
        run(program)
        before[list(SLOTS)] *= 2
        same(states, before)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(48, 3), (300, 4), (6000, 4)], ids=str)
def test_convolution(shape: tuple[int, int], bias: bool, precision: torch.dtype, isa: str) -> None:
    C, K = shape
    B = len(SLOTS)
    fused = conv_is_fused(B, C, K, precision, bias, torch.get_num_threads())
    assert fused is not None, "torch sums in an order that is not known: steps would run without this op"
    states, x, weight = poisoned(C, K).to(precision), normal((B, C, 1), precision, 1), normal((C, 1, K), precision, 2)
    offset = normal((C,), precision, 3) if bias else None
    window = torch.cat([states[list(SLOTS)], x], dim=-1)
    expected = functional.conv1d(window, weight, offset, groups=C)[..., -1]
    out = torch.empty(B, C, 2, dtype=precision)[..., 1]  # as a view of torch's result
    opposite = torch.arange(1 << 16).to(torch.int16).bitwise_not().view(torch.bfloat16)
    for table in (None, opposite) if precision == torch.bfloat16 else (None,):
        moved, program = states.clone(), NativeProgram()
        program.conv_update(moved, x[..., 0], weight[:, 0], offset, table, out, fused=fused)
        run(program)
        if table is not None:
            expected = expected.contiguous().view(torch.int16).bitwise_not().view(precision)
        same(out, expected)
        same(moved[list(SLOTS)], window[..., 1:])
        assert moved[[1, 2, 4, 6]].isnan().all()


def test_errors() -> None:
    states, x, program = torch.zeros(4, 6), torch.zeros(2, 6), NativeProgram()
    with pytest.raises(ValueError, match="x: expected F = 6"):
        program.load_states(states, torch.zeros(2, 5))
    with pytest.raises(ValueError, match="x: expected float32, got bfloat16"):
        program.store_states(states, x.bfloat16())
    rows, vectors = torch.zeros(2, 1, 2), torch.zeros(2, 1, 3)
    with pytest.raises(ValueError, match="plain: expected at most 3 columns, got 4"):
        program.delta_rule(states.view(4, 1, 2, 3), rows, rows, rows, vectors, rows[..., 0], vectors, 4)
    assert len(program) == 0
    program.load_states(states, x)
    with pytest.raises(ValueError, match="states: expected the slots of 2 rows, got none"):
        program.run(*step_program._NO_STEP)
    with pytest.raises(ValueError, match="states: expected 2 slots, got 3"):
        run(program)
    with pytest.raises(ValueError, match=r"states\[1\]: expected a value in \[0, 4\), got 4"):
        run(program, (0, 4))
