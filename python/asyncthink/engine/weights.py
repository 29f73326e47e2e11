"""New weights for a running model: checked before anything is written, then written whole."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def check_weights(tensors: Mapping[str, Tensor], model: nn.Module, name: str) -> None:
    """Each tensor is finite, and has the name and the shape of a parameter of the model.

    Raises ValueError, one line that begins with ``name`` or the tensor's, for what is not so.
    """
    parameters = dict(model.named_parameters())
    for key, tensor in tensors.items():
        if key not in parameters:
            raise ValueError(f"{name}: expected names of the model's parameters, got {key!r}")
        if tensor.shape != parameters[key].shape:
            raise ValueError(f"{key}: expected {tuple(parameters[key].shape)}, got {tuple(tensor.shape)}")
        if not tensor.isfinite().all():
            raise ValueError(f"{key}: expected finite values")


def write_weights(tensors: Mapping[str, Tensor], model: nn.Module) -> None:
    """Copy the tensors into the parameters of their names, in the parameters' dtype and on their device."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in tensors.items():
            parameters[name].copy_(tensor)
