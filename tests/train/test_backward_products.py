"""Backward passes in bfloat16: the loss to the last bit, gradients to bfloat16's rounding."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from asyncthink.train.backward_products import BFloat16Backward
from asyncthink.train.loading import ModelOptions
from asyncthink.train.logprobs import token_logprobs
from asyncthink.train.packed_attention import use_packed_attention
from asyncthink.train.packing import Row, pack
from tiny_models import tiny

ROUNDING = 2**-6  # of a gradient, relative to its norm: some roundings of 2**-9 each, one behind the other


def step(model: nn.Module, bfloat16: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a batch, and all gradients."""
    organizer = Row("organizer", "shared", tuple(range(3, 23)), (False,) * 5 + (True,) * 15)
    worker = Row("worker", "shared", tuple(range(5, 17)), (False,) + (True,) * 11, 0, 9)
    model.zero_grad()
    with BFloat16Backward() if bfloat16 else nullcontext():
        loss = -token_logprobs(model, pack([[organizer, worker]], 1)).sum()
        loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", ["qwen3", "qwen2"])  # without and with biases
def test_the_loss_is_bitwise_that_without_it(family: str) -> None:
    model = tiny(family)
    use_packed_attention(model)
    model.train()
    (loss, expected), (rounded_loss, got) = step(model, False), step(model, True)
    assert torch.equal(loss, rounded_loss) and got.keys() == expected.keys()
    differ = [name for name in got if not torch.equal(got[name], expected[name])]
    assert differ
    for name, grad in got.items():
        assert float((grad - expected[name]).norm()) <= ROUNDING * float(expected[name].norm()) + 1e-6, name


def test_what_needs_no_gradient_gets_none() -> None:
    x, weight = torch.randn(2, 3, 4), torch.randn(5, 4, requires_grad=True)
    with BFloat16Backward():
        functional.linear(x, weight).sum().backward()
        assert x.grad is None and weight.grad is not None
        x.requires_grad_()
        functional.linear(x, weight.detach()).sum().backward()
        with torch.no_grad():
            assert torch.equal(functional.linear(x, weight), x @ weight.T)
    assert x.grad is not None and x.grad.shape == x.shape


def test_it_is_refused_with_checkpointing() -> None:
    with pytest.raises(ValueError, match="bfloat16_backward: expected False with checkpointing"):
        ModelOptions(bfloat16_backward=True, checkpointing=True)


def test_other_dtypes_stay_as_they_are() -> None:
    x, weight = torch.randn(2, 4).double().requires_grad_(), torch.randn(5, 4).double().requires_grad_()
    with BFloat16Backward():
        functional.linear(x, weight).square().sum().backward()
    copies = [tensor.detach().clone().requires_grad_() for tensor in (x, weight)]
    functional.linear(*copies).square().sum().backward()
    for one, other in zip((x, weight), copies, strict=True):
        assert one.grad is not None and other.grad is not None and torch.equal(one.grad, other.grad)
