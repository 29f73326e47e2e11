"""The tensors of a checkpoint's training state, whole."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed import checkpoint as dcp

from asyncthink.train.state import STATE


def state_tensors(folder: Path) -> dict[str, Tensor]:
    """By name: moments, and the random state."""
    reader = dcp.FileSystemReader(folder / STATE)
    stored = reader.read_metadata().state_dict_metadata
    tensors = {name: torch.empty(each.size, dtype=each.properties.dtype) for name, each in stored.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        dcp.load(tensors, storage_reader=reader, no_dist=True)
    return tensors
