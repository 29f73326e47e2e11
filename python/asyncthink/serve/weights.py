"""Weights of a running model from a file."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from asyncthink.engine.weights import check_weights


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
    check_weights(tensors, model, "path")
    return tensors
