"""The emulator computes what a GPU would, and reports each kind of mistake that it is there to find."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch import Tensor

import emulated


@pytest.fixture(scope="module")
def toys() -> ModuleType:
    module = emulated.build("toys", [emulated.EMULATOR / "toys.cpp"])
    if module is None:
        pytest.skip("no g++ or no pybind11 here")
    return module


def run(toys: ModuleType, name: str, source: Tensor, *, wrong: bool = False, other: Tensor | None = None) -> Tensor:
    out = torch.full((256,), torch.nan)
    second = source if other is None else other
    toys.run(name, source.data_ptr(), second.data_ptr(), out.data_ptr(), wrong)
    return out


@pytest.fixture
def numbers() -> Tensor:
    return torch.arange(256, dtype=torch.float32)


def test_threads_meet_in_shared_memory(toys: ModuleType, numbers: Tensor) -> None:
    out = run(toys, "swap_neighbours", numbers)
    assert torch.equal(out[:64], numbers[:64].view(32, 2).flip(1).flatten())


def test_a_missing_barrier_reads_nan(toys: ModuleType, numbers: Tensor) -> None:
    out = run(toys, "swap_neighbours", numbers, wrong=True)
    assert out[:64].isnan().any()


def test_shuffles(toys: ModuleType, numbers: Tensor) -> None:
    out = run(toys, "add_warp", numbers)
    assert torch.equal(out[:64], numbers[:64].view(2, 32).sum(1).repeat_interleave(32))


def test_barriers_carry_a_flag(toys: ModuleType, numbers: Tensor) -> None:
    assert run(toys, "divergent_barrier", numbers)[:64].tolist() == [1.0] * 64


def test_copies(toys: ModuleType, numbers: Tensor) -> None:
    wanted = numbers.clone()
    wanted[28:32] = 0.0  # of the thread that copies nothing
    assert torch.equal(run(toys, "copy_through", numbers), wanted)


def test_a_missing_wait_reads_nan(toys: ModuleType, numbers: Tensor) -> None:
    assert run(toys, "copy_through", numbers, wrong=True).isnan().all()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("add_warp", r"not all lanes of warp 0 reach one place: lanes 0-2 at shuffle_xor \(.*\), 3 returned, 4-31 at"),
        ("two_places", r"not all lanes of warp 0 reach one place: lanes 0-2 at .*, 3 at shuffle_xor \(.*\), 4-31 at"),
        ("divergent_barrier", r"not all lanes of warp 0 .*: lanes 0-30 at sync_warp \(.*\), 31 at any_of_block \(.*\)"),
        ("forgotten_copy", r"thread \d+: returned while a copy_async is under way at .*toys.cpp:\d+"),
        ("misaligned_copy", r"thread \d+: copy_async: the source is not divisible by 16 at .*toys.cpp:\d+"),
        ("write_behind", "wrote past the end of shared memory"),
        ("write_before", "wrote before the beginning of shared memory"),
        ("stop", r"thread 9: trap at .*toys.cpp:\d+"),
    ],
)
def test_mistakes_are_reported(toys: ModuleType, numbers: Tensor, name: str, message: str) -> None:
    run(toys, name, numbers)
    with pytest.raises(RuntimeError, match=rf"^{name}: block \(0, 0, 0\): .*{message}"):
        run(toys, name, numbers, wrong=True)
    run(toys, name, numbers)  # and it goes on after that


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_matrix_products(toys: ModuleType, half: torch.dtype) -> None:
    a, b = (torch.randn(16, 16, generator=torch.Generator().manual_seed(seed)).to(half) for seed in (0, 1))
    out = run(toys, "bf16" if half == torch.bfloat16 else "f16", a, other=b).view(16, 16)
    torch.testing.assert_close(out.double(), a.double() @ b.double(), rtol=1e-6, atol=1e-6)
