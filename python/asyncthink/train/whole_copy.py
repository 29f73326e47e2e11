"""The weights that a sampler decodes with, where the trained model is divided among processes.

Decoding runs a model thousands of times a rollout; gathering its layers from other processes each time would take far
longer than the rollout. So each process holds one more copy of the weights, whole, without gradients and moments.
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import PreTrainedModel

from asyncthink.train.loading import Loaded, ModelOptions, load
from asyncthink.train.sharding import is_sharded, whole


def decoding_model(options: ModelOptions, resume: Path | None, loaded: Loaded) -> PreTrainedModel:
    """The trained model itself, or a whole, frozen copy of a sharded one, read from where it was loaded."""
    if not is_sharded(loaded.model):
        return loaded.model
    return load(options, resume).model.requires_grad_(False)


@torch.no_grad()
def refresh_copy(copy: PreTrainedModel, model: PreTrainedModel) -> None:
    """Overwrite ``copy`` with the trained weights, gathered one at a time. All processes call this."""
    if copy is model:
        return
    targets = dict(copy.named_parameters())
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            targets[name].copy_(whole(parameter))
