"""Backward passes whose matrix products are in bfloat16, of forward passes in the dtype of the weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode


class BFloat16Backward(TorchFunctionMode):  # type: ignore[no-untyped-call]
    """Linear layers inside this context have gradients of bfloat16 products, ``grad @ W`` and ``grad^T @ x``.

    Their outputs are bitwise those without it. So are losses, and in reinforcement learning the ratio to the sampler's
    log-probabilities. Factors are rounded to 8 bits and sums are float32, so gradients have relative errors of about
    1/500. Inputs are kept for the backward pass in bfloat16, which takes half the memory. Layers on weights of other
    dtypes than float32 stay as they are.

    The backward pass belongs into the context, too: layers that are computed again in it are then the same.

    >>> x, layer = torch.ones(2, 3), torch.nn.Linear(3, 4)
    >>> with BFloat16Backward():
    ...     layer(x).sum().backward()
    >>> layer.weight.grad[0]
    tensor([2., 2., 2.])
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is functional.linear and not kwargs and _is_float32(args):
            x, weight, bias = (*args, None)[:3]
            return _Linear.apply(x, weight, bias)
        return func(*args, **(kwargs or {}))


def _is_float32(args: tuple[Any, ...]) -> bool:
    return torch.is_grad_enabled() and args[0].dtype == args[1].dtype == torch.float32


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        needs_x, needs_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(x.bfloat16() if needs_weight else None, weight if needs_x else None)
        return functional.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        rounded = grad.bfloat16()
        grad_x = None if weight is None else (rounded @ weight.bfloat16()).float()
        grad_weight = None if x is None else (rounded.flatten(0, -2).T @ x.flatten(0, -2)).float()
        grad_bias = grad.flatten(0, -2).sum(0) if ctx.needs_input_grad[2] else None
        return grad_x, grad_weight, grad_bias
