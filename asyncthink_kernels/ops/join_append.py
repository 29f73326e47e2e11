"""join_append: a worker's K/V into the organizer's pages, keys turned to their new positions."""

from __future__ import annotations

from torch import Tensor

from asyncthink_kernels import dispatch
from asyncthink_kernels._checks import FLOATS, INT64, Checks, accumulate_dtype, no_grad
from asyncthink_kernels.ops._library import register


def join_append(
    k_caches: Tensor,
    v_caches: Tensor,
    src_slots: Tensor,
    dst_slots: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    interleaved: bool = False,
) -> None:
    """Copy N tokens' K and V from slot to slot in all L layers, in place, keys rotated by the shift of their position.

    For layer l, token t and each rotary pair (a, b) of K with angle x_i: ``a' = a cos x_i - b sin x_i``,
    ``b' = b cos x_i + a sin x_i``; the dims of K beyond 2R and all of V are copied bit for bit. With x_i = shift *
    inv_freq_i a key computed at position p becomes the key at p + shift, up to rounding.

    Args:
        k_caches: [L, P, S, H, D], written in place. float32, bfloat16, float16 (float64: reference backend only).
        v_caches: [L, P, S, H, Dv], dtype of ``k_caches``, written in place.
        src_slots: [N] int64, contiguous: page * S + offset of the tokens to copy.
        dst_slots: [N] int64, contiguous: where to; all different, none of them in ``src_slots``.
        cos, sin: [L, R] float32 (float64 with float64 caches), 2R <= D, contiguous. R = 0: plain copy.
        interleaved: rotary pairs are dims (2i, 2i + 1) rather than (i, i + R).

    The last dimension of the caches is contiguous; other strides are free.

    Raises:
        ValueError: a shape, dtype, device or stride that does not fit, a slot out of range, a destination named twice
            or also a source; the caches are untouched then. On a GPU slots are read only under
            ``ASYNCTHINK_CHECK=1``.

    Source: RoPE is a group action (RoFormer, arXiv 2104.09864, section 3.2), so R(p + d) k = R(d) R(p) k.

    >>> import torch
    >>> from asyncthink_kernels import join_append
    >>> k, v = torch.ones(1, 2, 1, 1, 2), torch.arange(2.0).view(1, 2, 1, 1, 1).expand(1, 2, 1, 1, 2).contiguous()
    >>> quarter = torch.tensor([[torch.pi / 2]])
    >>> join_append(k, v, torch.tensor([0]), torch.tensor([1]), quarter.cos(), quarter.sin())
    >>> k[0, 1, 0, 0].round().tolist(), v[0, 1, 0, 0].tolist()
    ([-1.0, 1.0], [0.0, 0.0])
    """
    no_grad("join_append", k_caches=k_caches, v_caches=v_caches)
    _op(k_caches, v_caches, src_slots, dst_slots, cos, sin, interleaved)


def _check(
    k_caches: Tensor,
    v_caches: Tensor,
    src_slots: Tensor,
    dst_slots: Tensor,
    cos: Tensor,
    sin: Tensor,
    interleaved: bool = False,
) -> None:
    check = Checks("join_append", k_caches.device)
    check.tensor("k_caches", k_caches, ("L", "P", "S", "H", "D"), FLOATS)
    check.tensor("v_caches", v_caches, ("L", "P", "S", "H", "Dv"), (k_caches.dtype,))
    check.tensor("src_slots", src_slots, ("N",), INT64, dense=True)
    check.tensor("dst_slots", dst_slots, ("N",), INT64, dense=True)
    check.tensor("cos", cos, ("L", "R"), (accumulate_dtype(k_caches.dtype),), dense=True)
    check.tensor("sin", sin, ("L", "R"), (accumulate_dtype(k_caches.dtype),), dense=True)
    check.that(
        2 * cos.shape[1] <= k_caches.shape[4], f"cos must have 2 R <= D={k_caches.shape[4]}, got R={cos.shape[1]}"
    )


def _run(
    k_caches: Tensor,
    v_caches: Tensor,
    src_slots: Tensor,
    dst_slots: Tensor,
    cos: Tensor,
    sin: Tensor,
    interleaved: bool = False,
) -> None:
    _check(k_caches, v_caches, src_slots, dst_slots, cos, sin, interleaved)
    dispatch.find("join_append", k_caches.device.type)(
        k_caches, v_caches, src_slots, dst_slots, cos, sin, interleaved=interleaved
    )


_op = register(
    "join_append(Tensor(a!) k_caches, Tensor(b!) v_caches, Tensor src_slots, Tensor dst_slots, Tensor cos, Tensor sin, "
    "bool interleaved=False) -> ()",
    _run,
    _check,
)
