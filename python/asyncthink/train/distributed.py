"""Data parallelism: ranks, and the collectives that a training step needs.

``torchrun --nproc-per-node N -m asyncthink train ...`` starts N processes; without torchrun there is one, and no
communication. Every process holds the whole model and computes the gradients of its share of a step's data. The
gradients are summed over processes, so all processes take the same optimizer step.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class World:
    """Process ``rank`` of ``size``. As a context manager it leaves the process group on exit.

    >>> with World.start(torch.device("cpu")) as world:
    ...     world.rank, world.size, world.gather(["a"])
    (0, 1, ['a'])
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def start(cls, device: torch.device) -> World:
        """Join the process group of torchrun (gloo on a CPU, NCCL on CUDA); a world of one without torchrun."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls()
        if device.type == "cuda":
            torch.cuda.set_device(device)
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
        return cls(distributed.get_rank(), distributed.get_world_size())

    def __enter__(self) -> World:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which alone writes files and logs."""
        return self.rank == 0

    def mine(self, items: Sequence[Item]) -> Sequence[Item]:
        """This process's share of ``items``, which all processes hold: every ``size``-th, starting at ``rank``."""
        return items[self.rank :: self.size]

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over all processes, with one all-reduce per dtype."""
        if self.size == 1:
            return
        for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
            same_dtype = [tensor for tensor in tensors if tensor.dtype == dtype]
            flat = torch.cat([tensor.reshape(-1) for tensor in same_dtype])
            distributed.all_reduce(flat)
            parts = torch.split(flat, [tensor.numel() for tensor in same_dtype])
            for tensor, part in zip(same_dtype, parts, strict=True):
                tensor.copy_(part.view_as(tensor))

    def gather(self, items: list[Item]) -> list[Item]:
        """The items of all processes in rank order, returned in every process. They must be picklable."""
        if self.size == 1:
            return list(items)
        parts: list[list[Item] | None] = [None] * self.size
        distributed.all_gather_object(parts, items)
        return [item for part in parts for item in part or ()]

    def barrier(self) -> None:
        """Wait until every process has called this."""
        if self.size > 1:
            distributed.barrier()

    def stop(self) -> None:
        """Leave the process group."""
        if self.size > 1 and distributed.is_initialized():
            distributed.destroy_process_group()


def gradients(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """The gradients of trainable parameters. A missing gradient is set to zeros, so that all processes sum the same."""
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in trainable:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    return [parameter.grad for parameter in trainable if parameter.grad is not None]
