"""sample: filters as a plain sort makes them, and one token on every backend."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from samples import MANY, build, emulated, kept_by_a_sort, on, same_as_the_reference, same_everywhere

from asyncthink_kernels import sample, use_backend
from asyncthink_kernels.testing import compare, far_apart, moved, normal
from targets import Target, _cpu


@pytest.mark.parametrize("V", [1, 2, 31, 257, 5003, 32768])
def test_against_the_float64_reference(V: int, target: Target, dtype: torch.dtype) -> None:
    """Rows of every kind in one batch, in views of memory whose neighbours are NaN."""
    kinds = [
        {"temperature": 0.0},
        {"temperature": 0.7},
        {"temperature": 30.0, "top_p": 0.99},
        {"top_k": 20},
        {"top_k": V + 5, "top_p": 0.5},
        {"top_p": 0.9, "min_p": 0.02},
        {"temperature": 0.6, "top_k": 300, "top_p": 0.95, "min_p": 1e-4},
    ]
    room = torch.full((len(kinds), V + 16), math.nan, dtype=dtype)
    logits = room[:, 8 : V + 8]
    logits[:] = 3 * normal((len(kinds), V), dtype, V)
    rows = [build(logits[row : row + 1], seed=row, **kind) for row, kind in enumerate(kinds)]
    arguments = {name: torch.cat([row[name] for row in rows]) for name in rows[0]} | {"logits": logits}
    same_as_the_reference(target, arguments)
    same_as_the_reference(target, arguments | {"logits": logits.contiguous()})


@MANY
@given(
    st.lists(st.sampled_from([-math.inf, -80.0, -2.0, -1.0, -0.5, -0.0, 0.0, 1.0, 1.5, 2.0]), min_size=1, max_size=12),
    st.sampled_from([0.25, 1.0, 4.0]),
    st.integers(0, 13),
    st.sampled_from([1e-30, 0.25, 0.5, 0.75, 0.9, 1.0]),
    st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    st.integers(0, 2**20),
)
def test_filters_are_those_of_a_sort(
    x: list[float], temperature: float, top_k: int, top_p: float, min_p: float, seed: int
) -> None:
    """Logits with many ties: 64 draws stay within what a sort leaves, and reach all that has a fair share of it."""
    if max(x) == -math.inf:
        x[0] = 0.0
    kept = kept_by_a_sort(x, temperature, top_k, top_p, min_p)
    logits = torch.tensor(x).expand(64, len(x))
    arguments = build(logits, temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed)
    tokens = set(same_everywhere(arguments, few=4).tolist())
    assert tokens <= kept
    if len(set(x)) == 1 and len(kept) <= 2:  # a share of 1/2: missed once in 2^64
        assert tokens == kept


@MANY
@given(
    st.integers(1, 700), st.sampled_from([0, 1, 2, 256, 257, 500]), st.sampled_from([0.1, 0.5, 0.999, 1.0]), st.data()
)
def test_ties_at_the_border_of_a_filter(V: int, top_k: int, top_p: float, data: st.DataObject) -> None:
    """Two or three values all over the row: the border falls among equal logits, in any run or chunk of it."""
    levels = data.draw(st.lists(st.sampled_from([0.0, 0.125, 1.0]), min_size=1, max_size=3))
    places = torch.randint(0, len(levels), (V,), generator=torch.Generator().manual_seed(V))
    x = torch.tensor(levels)[places]
    kept = kept_by_a_sort(x.tolist(), 1.0, top_k, top_p, 0.0)
    tokens = same_everywhere(build(x.expand(32, V), top_k=top_k, top_p=top_p, seed=V), few=2)
    assert set(tokens.tolist()) <= kept


def test_the_border_itself_is_drawn(target: Target) -> None:
    """The last token that a filter keeps and the first that it drops, each as likely as all the others."""
    V, k = 600, 300
    x = torch.zeros(40, V).index_fill_(1, torch.tensor([0, 599]), 12.0)  # two tokens of nearly all weight
    for arguments, kept in ((build(x, top_k=1), {0}), (build(x, top_k=2), {0, 599}), (build(x, top_p=0.49), {0})):
        assert set(same_as_the_reference(target, arguments).tolist()) == kept
    if emulated(target):
        return  # many draws take an emulator long
    for arguments in (build(torch.zeros(4096, V), top_k=k), build(torch.zeros(4096, V), top_p=0.5)):
        tokens, _ = on(target, arguments)
        assert tokens.min() == 0 and tokens.max() == k - 1


def test_shares_are_those_of_softmax(target: Target) -> None:
    if emulated(target):
        pytest.skip("an emulator takes long for so many draws; tokens are compared with the reference elsewhere")
    logits, n = torch.tensor([0.3, -1.0, 2.0, 0.0, 1.0, -math.inf]), 20_000
    tokens, _ = on(target, build(logits.expand(n, -1), temperature=0.7, seed=5))
    expected = torch.softmax(logits[:5].double() / 0.7, 0).numpy() * n
    counts = np.bincount(tokens.numpy(), minlength=6)
    assert counts[5] == 0
    assert ((counts[:5] - expected) ** 2 / expected).sum() < 18.5  # chi-square, 4 degrees of freedom, p = 0.001


@pytest.mark.parametrize("temperature", [1e-45, 1e-38, 1e-3, 1e4, 3.4e38])
def test_extreme_temperatures(temperature: float, target: Target, dtype: torch.dtype) -> None:
    """Next to 0 the largest logit is all there is, next to infinity all finite ones are alike."""
    logits = normal((8, 300), dtype, 3)
    logits[:, 7], logits[:, 100:] = -math.inf, -5.0
    arguments = build(logits, temperature=temperature)
    with use_backend("reference"):
        want, _ = sample(**arguments)
    tokens, logprobs = on(target, arguments)
    assert torch.equal(tokens, want) and (tokens != 7).all()
    if temperature < 1e-30:
        assert torch.equal(tokens, logits.float().argmax(1)) and (logprobs == 0).all()
    if temperature > 1e30:
        compare(logprobs, torch.full((8,), -math.log(299)), limit=1e-7)


@pytest.mark.parametrize("scale", [1e-40, 3e38])
def test_extreme_logits(scale: float, target: Target) -> None:
    """Subnormal differences, and such as overflow: the smallest logit is then as good as -inf."""
    logits = (torch.tensor([[1.0, -1.0, 0.5, 1.0]]) * scale).expand(16, 4)
    tokens, logprobs = on(target, build(logits))
    with use_backend("reference"):
        want, _ = sample(**build(logits))
    assert torch.equal(tokens, want) and logprobs.isfinite().all()


def test_greedy_takes_the_first_of_the_largest(target: Target, dtype: torch.dtype) -> None:
    logits = -normal((5, 1000), dtype, 1).abs() - 1
    logits[0, [999, 400, 41]] = 2.0
    logits[1, 999] = 2.0
    logits[2, 0] = 2.0
    logits[3, 300], logits[3, 200] = 0.0, -0.0
    logits[4] = -math.inf
    logits[4, 5] = -3.0
    for arguments in (build(logits, temperature=0.0), build(logits, top_k=1), build(logits, top_p=1e-20)):
        assert same_as_the_reference(target, arguments).tolist() == [41, 999, 0, 200, 5]


def test_a_huge_vocabulary(target: Target) -> None:
    """The largest there is: a sum of weights that nearly takes 63 bits."""
    V = 2**17 if emulated(target) else 2**23 - 1
    logits = torch.zeros(1, V, dtype=torch.bfloat16)
    logits[0, V - 1] = 2.0
    tokens, logprobs = on(target, build(logits, min_p=0.5))
    assert tokens.item() == V - 1
    compare(logprobs, torch.tensor([2 - math.log(V - 1 + math.exp(2))]), limit=1e-7)
    few = logits[:, -(2**17) :]
    same_as_the_reference(target, build(few, top_k=2**17 - 2, top_p=0.75, seed=4))


def test_rows_beyond_32_bits(target: Target) -> None:
    logits = far_apart((3, 50), torch.bfloat16, 0, target.device).copy_(normal((3, 50), torch.bfloat16, 0))
    tokens, logprobs = on(target, build(logits.contiguous().cpu(), top_p=0.7))
    again = sample(**moved(build(torch.zeros(3, 50), top_p=0.7), target.device) | {"logits": logits})
    assert torch.equal(again[0].cpu(), tokens) and torch.equal(again[1].cpu(), logprobs)


def test_no_rows(target: Target, dtype: torch.dtype) -> None:
    tokens, logprobs = on(target, build(torch.zeros(0, 5, dtype=dtype)))
    assert tokens.shape == logprobs.shape == (0,)


def test_a_row_depends_on_nothing_beside_it(target: Target) -> None:
    logits = 2 * normal((6, 900), torch.float32, 2)
    arguments = build(logits, top_p=0.8)
    tokens, logprobs = on(target, arguments)
    for row in (0, 5):
        alone = {name: value[row : row + 1] for name, value in arguments.items()}
        token, logprob = on(target, alone)
        assert token == tokens[row] and logprob == logprobs[row]


@pytest.mark.skipif(_cpu is None, reason="_cpu was not built here")
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_threads_do_not_matter(rows: int, dtype: torch.dtype) -> None:
    """Fewer rows than threads share a row among them."""
    logits = 2 * normal((rows, 40_000), dtype, 7)
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            with use_backend("cpu"):
                plain, filtered = sample(**build(logits)), sample(**build(logits, top_k=900, top_p=0.9))
            found.append((*plain, *filtered))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_opcheck(device: str) -> None:
    arguments = moved(build(normal((3, 7), torch.float32, 1), top_p=0.5), device)
    torch.library.opcheck(torch.ops.asyncthink.sample.default, tuple(arguments.values()))
