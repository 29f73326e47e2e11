"""sample's parts: random bits, and weights that are exact integers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from samples import build, emulated, on

from asyncthink_kernels.backends import _sample
from asyncthink_kernels.testing import compare
from targets import Target, _cpu

ONE = 2**40

#: Philox-4x32-10 of Random123's kat_vectors: counter, key, result.
KNOWN_ANSWERS = [
    ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.skipif(_cpu is None, reason="_cpu was not built here")
@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_philox_known_answers(counter: tuple[int, ...], key: tuple[int, ...], words: tuple[int, ...]) -> None:
    assert tuple(_cpu.philox(counter, key)) == words
    seed, agent, position = key[0] | key[1] << 32, counter[1] | counter[3] << 32, counter[0] | counter[2] << 32
    assert _sample.random_bits(seed, agent, position) == words[0] << 21 ^ words[1] >> 11


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
@pytest.mark.skipif(_cpu is None, reason="_cpu was not built here")
def test_philox_of_the_reference_is_that_of_the_kernels(seed: int, agent: int, position: int) -> None:
    low, high = [position % 2**32, agent % 2**32], [position >> 32, agent >> 32]
    words = _cpu.philox([*low, *high], [seed % 2**32, seed >> 32])
    assert _sample.random_bits(seed, agent, position) == words[0] << 21 ^ words[1] >> 11


def test_weights_are_right_to_one_unit_of_a_float() -> None:
    y = torch.cat((torch.linspace(0, 30, 300_001), torch.logspace(-38, 1, 10_001), torch.tensor([math.inf])))
    weight = _sample.weights(-y, torch.zeros(1), torch.ones(1))
    exact = (-y.double()).exp() * ONE
    unit = torch.exp2((exact / ONE).log2().floor() - 23) * ONE
    assert ((weight - exact).abs() <= unit.clamp(min=1)).all()
    assert weight[0] == ONE and (weight[y >= 28] == 0).all() and (weight[y <= 27.7] > 0).all()
    assert (weight <= ONE).all() and (weight >= 0).all()


def test_random_bits_pick_the_token(target: Target) -> None:
    """Among 2^k equal tokens the first k bits are the token's number."""
    N, V = (8, 2**9) if emulated(target) else (64, 2**16)
    numbers = torch.randint(-(2**63), 2**63 - 1, (3, N), generator=torch.Generator().manual_seed(1))
    arguments = build(torch.zeros(1, V).expand(N, V))
    arguments |= {"seeds": numbers[0], "agents": numbers[1], "positions": numbers[2]}
    tokens, logprobs = on(target, arguments)
    want = [_sample.random_bits(*each) >> 53 - V.bit_length() + 1 for each in numbers.T.tolist()]
    assert tokens.tolist() == want
    compare(logprobs, torch.full((N,), -math.log(V)), limit=1e-7)
