"""The product of the interpreted kernels: one order of summation, whatever the number of rows and the processor."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import interpreted


def matrices(seed: int, M: int, K: int, N: int) -> tuple[NDArray[Any], NDArray[Any]]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((M, K)).astype(np.float16), rng.standard_normal((K, N)).astype(np.float16)


sizes = st.sampled_from([1, 2, 4, 16, 32, 64])


@given(st.integers(0, 2**32 - 1), sizes, sizes, sizes, st.randoms())
def test_an_element_follows_from_its_row_and_column_alone(seed: int, M: int, K: int, N: int, random: Any) -> None:
    a, b = matrices(seed, M, K, N)
    whole = interpreted.product(a, b, np.float32)
    rows = random.sample(range(M), random.randint(1, M))
    columns = random.sample(range(N), random.randint(1, N))
    part = interpreted.product(np.asfortranarray(a[rows]), b.T[columns].T, np.float32)
    assert np.array_equal(part, whole[np.ix_(rows, columns)])


def test_the_second_half_is_added_to_the_first() -> None:
    """(2^24 + 1) + (1 - 2^24) is 1 in float32, where 2^24 + 1 is rounded to 2^24; from left to right it would be 0."""
    terms = np.array([[2.0**24, 1.0, 1.0, -(2.0**24)]])
    assert interpreted.product(terms, np.ones((4, 1)), np.float32) == 1.0
    assert interpreted.product(terms, np.ones((4, 1)), np.float64) == 2.0


def test_it_multiplies_matrices() -> None:
    a, b = (each.astype(np.float64) for each in matrices(0, 16, 64, 32))
    np.testing.assert_allclose(interpreted.product(a, b, np.float64), a @ b, rtol=0, atol=1e-13)
    stacked = interpreted.product(np.stack((a, 2 * a)), np.stack((b, b)), np.float64)
    assert stacked.shape == (2, 16, 32) and np.array_equal(stacked[1], 2 * stacked[0])


@pytest.mark.skipif(not interpreted.in_use(), reason="Triton compiles its kernels here")
def test_the_interpreter_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from asyncthink_kernels import use_backend
    from tree_cases import CASES, attend, build

    calls = list[tuple[int, ...]]()
    product = interpreted.product

    def counted(a: NDArray[Any], b: NDArray[Any], dtype: Any) -> NDArray[Any]:
        calls.append(a.shape)
        return product(a, b, dtype)

    monkeypatch.setattr(interpreted, "product", counted)
    with use_backend("triton"):
        attend(**build(CASES["fork mid-page"], torch.float16)[0])
    assert calls
