"""sample: weights that are exact integers, filters as a plain sort makes them, one token on every backend."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from asyncthink_kernels import sample, use_backend
from asyncthink_kernels.backends import _sample
from asyncthink_kernels.testing import compare, far_apart, moved, normal
from conftest import Target, _cpu, forced, targets

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
MANY = settings(max_examples=50, deadline=None)


def build(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    seed: int = 0,
) -> dict[str, Any]:
    """Arguments for rows that share everything but their positions."""
    N = logits.shape[0]
    return {
        "logits": logits,
        "seeds": torch.full((N,), seed),
        "agents": torch.zeros(N, dtype=torch.int64),
        "positions": torch.arange(N),
        "temperature": torch.full((N,), temperature),
        "top_k": torch.full((N,), top_k, dtype=torch.int32),
        "top_p": torch.full((N,), top_p),
        "min_p": torch.full((N,), min_p),
    }


def emulated(target: Target) -> bool:
    """Where every draw takes milliseconds."""
    return target.backend == "cuda" and target.device == "cpu"


def on(target: Target, arguments: dict[str, Any]) -> tuple[Tensor, Tensor]:
    tokens, logprobs = sample(**moved(arguments, target.device))
    assert tokens.dtype == torch.int64 and logprobs.dtype == torch.float32
    return tokens.cpu(), logprobs.cpu()


def wanted(arguments: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The tokens of the reference, with their log-probabilities in a float64 softmax."""
    with use_backend("reference"):
        tokens, _ = sample(**arguments)
    heat = arguments["temperature"].double()
    heat[heat == 0] = 1
    exact = torch.log_softmax(arguments["logits"].double() / heat[:, None], dim=-1)
    return tokens, exact.gather(1, tokens[:, None])[:, 0]


def same_as_the_reference(target: Target, arguments: dict[str, Any]) -> Tensor:
    """The tokens; the log-probability also of a float64 softmax."""
    tokens, logprobs = on(target, arguments)
    want, exact = wanted(arguments)
    assert torch.equal(tokens, want)
    compare(logprobs, exact, limit=3e-7, what="logprobs")
    return tokens


def same_everywhere(arguments: dict[str, Any], few: int) -> Tensor:
    """The tokens, and their log-probabilities, on every target; an emulator draws the first ``few`` rows alone.

    What is wanted takes far longer than what a kernel draws: here it is made once for all targets.
    """
    want, exact = wanted(arguments)
    for target in targets("sample"):
        rows = few if emulated(target) else len(want)
        with forced(target):
            tokens, logprobs = on(target, {name: value[:rows] for name, value in arguments.items()})
        assert torch.equal(tokens, want[:rows]), target
        compare(logprobs, exact[:rows], limit=3e-7, what=f"logprobs on {target}")
    return want


def kept_by_a_sort(x: list[float], temperature: float, top_k: int, top_p: float, min_p: float) -> set[int]:
    """What the filters leave, from float64 probabilities, and fractions where they are equal to the last bit."""
    heat, top_p, min_p = torch.tensor([temperature, top_p, min_p]).tolist()  # rounded to float32
    p = [Fraction(share) for share in torch.softmax(torch.tensor(x).double() / heat, 0).tolist()]
    order = sorted(range(len(x)), key=lambda v: (-x[v], v))
    order = order[: top_k or None]
    if top_p < 1:
        total, mass, count = sum(p[v] for v in order), Fraction(0), 0
        while count < len(order) and (count == 0 or mass < Fraction(top_p) * total):
            mass += p[order[count]]
            count += 1
        order = order[:count]
    return {v for v in order if p[v] > 0 and p[v] >= Fraction(min_p) * max(p)}


# -- the parts --------------------------------------------------------------------------------------------------------


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


# -- the whole --------------------------------------------------------------------------------------------------------


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


def test_a_vocabulary_that_is_too_large() -> None:
    with pytest.raises(ValueError, match=r"sample: logits must have V in \[1, 8388607\], got V=8388608"):
        sample(**build(torch.zeros(1, 1, dtype=torch.bfloat16).expand(1, 2**23).contiguous()))


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


# -- what does not fit ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", ["NaN", "negative NaN", "inf", "all -inf"])
def test_logits_that_are_not_finite(bad: str, target: Target, dtype: torch.dtype) -> None:
    logits = torch.zeros(4, 600, dtype=dtype)
    logits[2, 599] = {"NaN": math.nan, "negative NaN": -math.nan, "inf": math.inf, "all -inf": 0.0}[bad]
    if bad == "all -inf":
        logits[2] = -math.inf
    if target.backend == "cuda" or target.device == "cuda":
        tokens, logprobs = on(target, build(logits))
        assert (tokens >= 0).tolist() == logprobs.isfinite().tolist() == [True, True, False, True]
        assert tokens[2] == -1 and logprobs[2].isnan()
    else:
        with pytest.raises(ValueError, match=r"logits\b.* finite.*, got maximum .* in row 2"):
            on(target, build(logits))


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", -1.0), ("temperature", math.nan), ("temperature", math.inf), ("top_k", -1), ("top_p", 0.0),
     ("top_p", 1.1), ("top_p", math.nan), ("min_p", -0.1), ("min_p", 1.5), ("min_p", math.nan)],
)  # fmt: skip
def test_values_out_of_range(name: str, value: float, target: Target) -> None:
    """Looked at everywhere under ASYNCTHINK_CHECK=1, which the tests set."""
    arguments = build(torch.zeros(3, 5))
    arguments[name][1] = value
    with pytest.raises(ValueError, match=rf"{name}\b.* got .*"):
        on(target, arguments)


METADATA = {
    "logits of one dimension": ("logits", lambda a: a["logits"][0]),
    "logits of float64": ("logits", lambda a: a["logits"].double()),
    "logits with a stride": ("logits", lambda a: a["logits"].repeat(1, 2)[:, ::2]),
    "logits of no token": ("logits", lambda a: a["logits"][:, :0]),
    "logits that require grad": ("logits", lambda a: a["logits"].clone().requires_grad_()),
    "seeds of another length": ("seeds", lambda a: a["seeds"][1:]),
    "agents of int32": ("agents", lambda a: a["agents"].int()),
    "positions elsewhere": ("positions", lambda a: a["positions"].to("meta")),
    "temperature of float64": ("temperature", lambda a: a["temperature"].double()),
    "top_k of int64": ("top_k", lambda a: a["top_k"].long()),
    "top_p with a stride": ("top_p", lambda a: a["top_p"].repeat_interleave(2)[::2]),
    "min_p of two dimensions": ("min_p", lambda a: a["min_p"][None]),
}


@pytest.mark.parametrize("name", METADATA)
def test_bad_metadata_names_the_tensor(name: str) -> None:
    culprit, change = METADATA[name]
    arguments = build(torch.zeros(3, 5))
    with pytest.raises(ValueError, match=rf"sample: .*\b{culprit}\b.*, got "):
        sample(**arguments | {culprit: change(arguments)})


def test_opcheck(device: str) -> None:
    arguments = moved(build(normal((3, 7), torch.float32, 1), top_p=0.5), device)
    torch.library.opcheck(torch.ops.asyncthink.sample.default, tuple(arguments.values()))
