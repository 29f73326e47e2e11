"""Weights of a running model from a file."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn


def read_weights(path: Path, model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a safetensors file: each is a parameter of the model, of its shape.

    Raises ValueError, one line, for a file that cannot be read, an unknown name, another shape, and what is not finite.
    """
    if not path.is_file():
        raise ValueError(f"path: expected a safetensors file, got {path}")
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"path: expected a safetensors file, got {path}: {error}") from None
    parameters = dict(model.named_parameters())
    for name, tensor in tensors.items():
        if name not in parameters:
            raise ValueError(f"path: expected names of the model's parameters, got {name!r}")
        if tensor.shape != parameters[name].shape:
            raise ValueError(f"{name}: expected {tuple(parameters[name].shape)}, got {tuple(tensor.shape)}")
        if not tensor.isfinite().all():
            raise ValueError(f"{name}: expected finite values")
    return tensors


def write_weights(tensors: dict[str, Tensor], model: nn.Module) -> None:
    """Copy the tensors into the parameters of their names, in the parameters' dtype and on their device."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in tensors.items():
            parameters[name].copy_(tensor)
