"""Weights of linear layers in the order in which the CPU kernels of ``packed_linear`` read them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

BLOCK = 32
"""Outputs that lie side by side."""

INPUTS = {torch.float32: 1, torch.bfloat16: 2}
"""Inputs of one output that lie side by side, for each dtype that can be packed."""


def packable(weight: Tensor) -> bool:
    """Whether weight [O, I] can be packed: a dtype of :data:`INPUTS`, and whole pairs of inputs."""
    return weight.ndim == 2 and weight.dtype in INPUTS and weight.shape[1] % INPUTS[weight.dtype] == 0


def pack_linear(weight: Tensor) -> Tensor:
    """weight [O, I] -> [ceil(O / 32), I, 32] float32, or [ceil(O / 32), I / 2, 32, 2] bfloat16; missing outputs are 0.

    Raises ValueError for another dtype, and for an odd number of bfloat16 inputs.

    >>> pack_linear(torch.arange(6.0).view(2, 3))[0, :, :3]
    tensor([[0., 3., 0.],
            [1., 4., 0.],
            [2., 5., 0.]])
    """
    if not packable(weight):
        raise ValueError(
            f"pack_linear: expected [O, I] float32, or bfloat16 with an even I, got {list(weight.shape)} {weight.dtype}"
        )
    weight, pair = weight.detach(), INPUTS[weight.dtype]
    outputs, inputs = weight.shape
    blocks = -(-outputs // BLOCK)
    whole = functional.pad(weight, (0, 0, 0, blocks * BLOCK - outputs))
    packed = whole.view(blocks, BLOCK, inputs // pair, pair).transpose(1, 2)
    return (packed.squeeze(3) if pair == 1 else packed).contiguous()


def unpack_linear(packed: Tensor, out_features: int) -> Tensor:
    """The weight [O, I] that :func:`pack_linear` packed.

    >>> unpack_linear(pack_linear(torch.eye(3)), 3).equal(torch.eye(3))
    True
    """
    pairs = packed if packed.ndim == 4 else packed.unsqueeze(3)
    return pairs.transpose(1, 2).reshape(pairs.shape[0] * BLOCK, -1)[:out_features]
