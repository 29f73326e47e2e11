"""row_attention: attention over packed rows, with gradients, on a CPU.

Not an op of torch's library: it is an autograd function on the native kernels alone (:func:`native`); training on other
devices has FlexAttention.

Letters: T tokens, Hq query heads, H kv heads, D and Dv head dims of K and V, R rows, M ranges, N trees.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from asyncthink_kernels import dispatch
from asyncthink_kernels._checks import Checks

MULTIPLE = 16
"""Head dims are multiples of it."""


def native() -> Any | None:
    """The backend that computes it, or None: not built, or another backend is named."""
    return dispatch.find_native()


def computes(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether :func:`row_attention` takes tensors of these dtypes, devices and head dims, here.

    >>> computes(*torch.ones(3, 4, 2, 24))
    False
    """
    fitting = all(
        x.dtype == torch.float32 and x.device.type == "cpu" and x.shape[-1] % MULTIPLE == 0 for x in (q, k, v)
    )
    return fitting and native() is not None


@dataclass(frozen=True, eq=False)
class RowPlan:
    """Which tokens attend to which, as the kernels read it; all int64, on the CPU.

    Args:
        rows: [R, 4]: (start, stop, first, last): tokens [start, stop) attend to themselves, causally, and to the tokens
            of all ranges first to last - 1. No token is in two rows.
        ranges: [M, 2]: tokens (first, last).
        trees: [N, 2]: (first, last) rows. Rows of different trees attend to no token in common; each is one piece of
            work of the backward pass.
    """

    rows: Tensor
    ranges: Tensor
    trees: Tensor

    @classmethod
    def of(cls, spans: Sequence[tuple[int, int, Sequence[tuple[int, int]]]]) -> RowPlan:
        """The plan of rows (start, stop, seen ranges).

        >>> plan = RowPlan.of([(0, 4, ()), (6, 9, ()), (4, 6, [(0, 2)])])
        >>> plan.rows.tolist()
        [[0, 4, 0, 0], [4, 6, 0, 1], [6, 9, 1, 1]]
        >>> plan.ranges.tolist(), plan.trees.tolist()
        ([[0, 2]], [[0, 2], [2, 3]])
        """
        tree = list(range(len(spans)))  # an earlier row of the same tree, or the row itself

        def root(row: int) -> int:
            while tree[row] != row:
                row = tree[row]
            return row

        by_start = sorted(range(len(spans)), key=lambda number: spans[number][0])
        starts = [spans[number][0] for number in by_start]
        for number, (_, _, seen) in enumerate(spans):
            for first, last in seen:
                for place in range(max(0, bisect.bisect_right(starts, first) - 1), bisect.bisect_left(starts, last)):
                    one, two = sorted((root(number), root(by_start[place])))
                    tree[two] = one
        order = sorted(range(len(spans)), key=lambda number: (root(number), number))
        rows, ranges, trees = [], [], []
        for place, number in enumerate(order):
            start, stop, seen = spans[number]
            rows.append((start, stop, len(ranges), len(ranges) + len(seen)))
            ranges += [tuple(ends) for ends in seen]
            if place and root(order[place - 1]) == root(number):
                trees[-1] = trees[-1][0], place + 1
            else:
                trees.append((place, place + 1))
        return cls(_table(rows, 4), _table(ranges, 2), _table(trees, 2))


def _table(values: Sequence[Sequence[int]], columns: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int64).reshape(-1, columns)


class RowArguments(NamedTuple):
    """What the kernels read."""

    q: Tensor
    k: Tensor
    v: Tensor
    rows: Tensor
    ranges: Tensor
    trees: Tensor
    scale: float


def row_attention(q: Tensor, k: Tensor, v: Tensor, plan: RowPlan, scale: float | None = None) -> Tensor:
    """``softmax(scale q k^T over what a token attends to) v``, with gradients to q, k and v.

    Every token of a row counts its keys and values for all rows that see it. Sums are float32, products of fused
    multiplications and additions; K, V and scores are never copied for a row. Tokens of no row get 0, and give no
    gradient.

    Args:
        q: [T, Hq, D] float32 on the CPU, last dimension contiguous; D a multiple of 16.
        k: [T, H, D], Hq a multiple of H.
        v: [T, H, Dv], Dv a multiple of 16.
        plan: of the T tokens.
        scale: D ** -0.5 if None.

    Returns:
        [T, Hq, Dv] float32, contiguous. The same bits with any number of threads.

    Raises:
        ValueError: a shape, dtype, device, stride or interval that does not fit.
        RuntimeError: the native kernels are not there, or another backend is named.

    >>> x = torch.ones(3, 1, 16)
    >>> v = torch.arange(3.0)[:, None, None].expand(3, 1, 16).contiguous()
    >>> row_attention(x, x, v, RowPlan.of([(0, 1, ()), (1, 3, [(0, 1)])]))[:, 0, 0]
    tensor([0.0000, 0.5000, 1.0000])
    """
    if native() is None:
        raise RuntimeError("row_attention: expected the native CPU kernels, got another backend")
    check = Checks("row_attention", torch.device("cpu"))
    for name, tensor, dims in (("q", q, ("T", "Hq", "D")), ("k", k, ("T", "H", "D")), ("v", v, ("T", "H", "Dv"))):
        check.tensor(name, tensor, dims, (torch.float32,))
    scale = q.shape[2] ** -0.5 if scale is None else scale
    check.that(math.isfinite(scale), f"scale must be finite, got {scale}")
    out: Tensor = _RowAttention.apply(q, k, v, plan, scale)
    return out


class _RowAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, plan: RowPlan, scale: float) -> Tensor:
        T, Hq, _ = q.shape
        out, lse = q.new_zeros(T, Hq, v.shape[2]), q.new_zeros(T, Hq)
        args = RowArguments(q, k, v, plan.rows, plan.ranges, plan.trees, scale)
        _backend().row_attention(args, out, lse)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.plan, ctx.scale = plan, scale
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, k, v, out, lse = ctx.saved_tensors
        plan = ctx.plan
        grad = grad if grad.stride(-1) == 1 else grad.contiguous()
        grads = [x.new_zeros(x.shape) for x in (q, k, v)]
        args = RowArguments(q, k, v, plan.rows, plan.ranges, plan.trees, ctx.scale)
        _backend().row_attention_backward(args, out, lse, grad, *grads)
        return (*grads, None, None)


def _backend() -> Any:
    return native()
