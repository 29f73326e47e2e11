"""copy_pages: whole pages from place to place in every layer."""

from __future__ import annotations

from torch import Tensor

from asyncthink_kernels import dispatch
from asyncthink_kernels._checks import FLOATS, INT64, Checks, no_grad
from asyncthink_kernels.ops._library import register


def copy_pages(k_caches: Tensor, v_caches: Tensor, src: Tensor, dst: Tensor) -> None:
    """Copy n pages in all L layers, in place: ``k_caches[:, dst[i]] = k_caches[:, src[i]]``, and the same for V.

    Args:
        k_caches: [L, P, S, H, D], written in place. float32, bfloat16, float16 (float64: reference backend only).
        v_caches: [L, P, S, H, Dv], dtype of ``k_caches``, written in place.
        src: [n] int64 page ids, contiguous.
        dst: [n] int64 page ids, contiguous; all different, none of them in ``src``.

    The last dimension of the caches is contiguous; other strides are free.

    Raises:
        ValueError: a shape, dtype, device or stride that does not fit, a page out of range, a destination named twice
            or also a source; the caches are untouched then. On a GPU page ids are read only under
            ``ASYNCTHINK_CHECK=1``.

    Source: the block copies of vLLM's copy-on-write (arXiv 2309.06180, section 4.4).

    >>> import torch
    >>> from asyncthink_kernels import copy_pages
    >>> k, v = torch.arange(3.0).view(1, 3, 1, 1, 1), torch.zeros(1, 3, 1, 1, 1)
    >>> copy_pages(k, v, torch.tensor([2]), torch.tensor([0]))
    >>> k.flatten().tolist()
    [2.0, 1.0, 2.0]
    """
    no_grad("copy_pages", k_caches=k_caches, v_caches=v_caches)
    _op(k_caches, v_caches, src, dst)


def _check(k_caches: Tensor, v_caches: Tensor, src: Tensor, dst: Tensor) -> None:
    check = Checks("copy_pages", k_caches.device)
    check.tensor("k_caches", k_caches, ("L", "P", "S", "H", "D"), FLOATS)
    check.tensor("v_caches", v_caches, ("L", "P", "S", "H", "Dv"), (k_caches.dtype,))
    check.tensor("src", src, ("n",), INT64, dense=True)
    check.tensor("dst", dst, ("n",), INT64, dense=True)


def _run(k_caches: Tensor, v_caches: Tensor, src: Tensor, dst: Tensor) -> None:
    _check(k_caches, v_caches, src, dst)
    dispatch.find("copy_pages", k_caches.device.type)(k_caches, v_caches, src, dst)


_op = register("copy_pages(Tensor(a!) k_caches, Tensor(b!) v_caches, Tensor src, Tensor dst) -> ()", _run, _check)
