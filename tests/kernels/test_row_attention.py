"""row_attention against float64: outputs and gradients of trees of rows, in every instruction set."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from asyncthink_kernels import use_backend
from asyncthink_kernels.ops import row_attention as ops
from asyncthink_kernels.ops.row_attention import RowPlan, computes, row_attention
from asyncthink_kernels.testing import compare

_cpu = pytest.importorskip("asyncthink_kernels._cpu")
LIMIT = 4e-6  # of what is divided by its largest value
Spans = list[tuple[int, int, list[tuple[int, int]]]]


@pytest.fixture(params=_cpu.usable_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = _cpu.isa()
    _cpu.set_isa(request.param)
    yield request.param
    _cpu.set_isa(before)


def spans_of(seed: int, trees: int, longest: int) -> tuple[Spans, int]:
    """Trees of rows one behind the other, and the number of tokens: a row sees what its parent sees and its head."""
    rng, made, end = random.Random(seed), Spans(), 0
    for _ in range(trees):
        tree: Spans = []
        for _ in range(rng.randrange(1, 5)):
            seen = []
            if tree and rng.random() < 0.8:
                start, stop, above = rng.choice(tree)
                head = rng.randrange(stop - start + 1)
                seen = [*above, *([(start, start + head)] if head else [])]
            size = rng.randrange(1, longest)
            tree.append((end, end + size, seen))
            end += size
        made += tree
    return made, end


def dense(q: Tensor, k: Tensor, v: Tensor, spans: Spans, scale: float) -> Tensor:
    """The specification, from q, k, v [T, H, D]."""
    T, index = q.shape[0], torch.arange(q.shape[0])
    sees = torch.zeros(T, T, dtype=torch.bool)
    for start, stop, seen in spans:
        sees[start:stop, start:stop] = index[start:stop, None] >= index[None, start:stop]
        for first, last in seen:
            sees[start:stop, first:last] = True
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = torch.einsum("qhd,khd->hqk", q, k) * scale
    return torch.einsum("hqk,khd->qhd", scores.masked_fill(~sees, -torch.inf).softmax(-1), v)


def check(spans: Spans, T: int, heads: tuple[int, int], dims: tuple[int, int], seed: int) -> None:
    (Hq, H), (D, Dv) = heads, dims
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    given_ = drawn(T, Hq, D), drawn(T, H, D), drawn(T, H, Dv)
    grad, scale = drawn(T, Hq, Dv), 1.3 * D**-0.5
    narrow = [x.requires_grad_() for x in given_]
    wide = [x.detach().double().requires_grad_() for x in given_]
    out, expected = row_attention(*narrow, RowPlan.of(spans), scale), dense(*wide, spans, scale)
    out.backward(grad)
    expected.backward(grad.double())
    compare(out.detach(), expected.detach(), limit=LIMIT)
    for name, x, y in zip("qkv", narrow, wide, strict=True):
        assert x.grad is not None and y.grad is not None
        largest = max(1.0, float(y.grad.abs().max()))
        compare(x.grad.double() / largest, y.grad / largest, limit=LIMIT, what=f"gradient of {name}")


CASES = {
    "rows longer than a tile and than a segment's padding": ([(0, 70, []), (70, 171, [(0, 64)])], 171),
    "one token each": ([(0, 1, []), (1, 2, [(0, 1)]), (2, 3, [])], 3),
    "a row that sees two rows, behind one that it does not": (
        [(0, 33, []), (33, 50, []), (50, 61, [(0, 9), (33, 40)])],
        61,
    ),
}


@pytest.mark.parametrize("dims", [(32, 32), (16, 48), (80, 16)], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_every_instruction_set(case: str, dims: tuple[int, int], isa: str) -> None:
    check(*CASES[case], (6, 2), dims, 0)


@given(
    seed=st.integers(0, 10**6), trees=st.integers(1, 4), longest=st.sampled_from([2, 9, 40]), group=st.integers(1, 3)
)
@settings(max_examples=25, deadline=None)
def test_any_trees(seed: int, trees: int, longest: int, group: int) -> None:
    check(*spans_of(seed, trees, longest), (2 * group, 2), (16, 32), seed)


def test_tensors_with_gaps_and_transposed_gradients() -> None:
    x = torch.randn(3, 20, 2, 16).transpose(1, 2)  # heads before tokens, as models make them
    q, k, v = (part.transpose(0, 1).requires_grad_() for part in x)
    plan = RowPlan.of([(0, 20, [])])
    out = row_attention(q, k, v, plan)
    out.transpose(0, 2).contiguous().transpose(0, 2).sum().backward()
    copies = [part.detach().contiguous().requires_grad_() for part in (q, k, v)]
    row_attention(*copies, plan).sum().backward()
    for one, other in zip((q, k, v), copies, strict=True):
        assert one.grad is not None and other.grad is not None
        compare(one.grad, other.grad, limit=LIMIT)


def test_bitwise_the_same_with_any_number_of_threads() -> None:
    spans, T = spans_of(5, 3, 30)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            torch.manual_seed(0)
            given_ = [torch.randn(T, heads, 32, requires_grad=True) for heads in (6, 2, 2)]
            out = row_attention(*given_, RowPlan.of(spans))
            out.square().sum().backward()
            results.append([out, *(x.grad for x in given_)])
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        for one, other in zip(results[0], result, strict=True):
            assert one is not None and other is not None and torch.equal(one, other)


def test_a_token_of_no_row_gets_and_gives_nothing() -> None:
    q, k, v = (torch.full((5, 1, 16), torch.nan) for _ in range(3))
    for x in (q, k, v):
        x[1:4] = torch.randn(3, 1, 16)
        x.requires_grad_()
    out = row_attention(q, k, v, RowPlan.of([(1, 3, []), (3, 4, [(1, 2)])]))
    out.sum().backward()
    for x in (out, q.grad, k.grad, v.grad):
        assert x is not None and not x[[0, 4]].any() and x.isfinite().all()


def test_rows_that_see_a_token_in_common_are_one_tree() -> None:
    plan = RowPlan.of([(0, 4, []), (4, 8, []), (8, 9, [(2, 6)]), (9, 12, [(9, 9)]), (12, 13, [(9, 10)])])
    assert plan.trees.tolist() == [[0, 3], [3, 5]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(4, 3, 16)}, "a multiple of the 2 heads of k, got 3"),
        ({"k": torch.zeros(4, 2, 16).double()}, "k must be torch.float32"),
        ({"v": torch.zeros(5, 2, 16)}, "v must have shape"),
        ({"v": torch.zeros(4, 2, 24)}, "Dv: expected a multiple of 16, got 24"),
        ({"scale": float("inf")}, "scale must be finite"),
        ({"plan": RowPlan.of([(0, 5, [])])}, r"rows\[0\]: expected an interval within \[0, 4\], got \[0, 5\)"),
        ({"plan": RowPlan.of([(0, 4, [(3, 9)])])}, r"ranges\[0\]: expected an interval"),
    ],
    ids=str,
)
def test_what_does_not_fit(change: dict[str, object], message: str) -> None:
    fitting = {"q": torch.zeros(4, 4, 16), "k": torch.zeros(4, 2, 16), "v": torch.zeros(4, 2, 16)}
    given_: dict[str, object] = {**fitting, "plan": RowPlan.of([(0, 4, [])]), **change}
    with pytest.raises(ValueError, match=message):
        row_attention(**given_)  # type: ignore[arg-type]


def test_it_says_where_it_computes() -> None:
    x = torch.zeros(2, 1, 16)
    assert computes(x, x, x) and not computes(x.double(), x, x) and not computes(x, x, x[..., :8])
    with use_backend("reference"):
        assert ops.native() is None and not computes(x, x, x)
        with pytest.raises(RuntimeError, match="expected the native CPU kernels"):
            row_attention(x, x, x, RowPlan.of([(0, 2, [])]))
