"""Passes without data, for a process that has fewer batches than another one of the run."""

from __future__ import annotations

import torch
from torch import nn

from asyncthink.train.logprobs import token_logprobs
from asyncthink.train.packing import Row, pack


def idle_pass(model: nn.Module, device: torch.device, *others: nn.Module) -> None:
    """Take part in a forward and backward pass of ``model`` with gradients of 0, after a forward pass of ``others``.

    A pass gathers weights from all processes, so it waits for all. ``others`` are models that a batch only evaluates.
    """
    batch = pack([[Row("", "", (3, 4), (False, True))]], 1).to(device)
    logprobs = token_logprobs(model, batch)
    with torch.no_grad():
        for other in others:
            token_logprobs(other, batch)
    (0.0 * logprobs.sum()).backward()  # type: ignore[no-untyped-call]
