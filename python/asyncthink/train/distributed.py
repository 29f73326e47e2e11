"""The processes of a training run, and what they tell each other.

``torchrun --nproc-per-node N -m asyncthink train ...`` starts N processes; without torchrun there is one, and no
communication. Each computes the gradients of its share of a step's data; :mod:`.sharding` divides weights, gradients
and moments among them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import TypeVar

import torch
from torch import distributed

Item = TypeVar("Item")

TIMEOUT = timedelta(minutes=30)
"""How long a process waits for the others, which may still draw a long rollout. A process that died is noticed at once
on a CPU; one that hangs, and on GPUs also one that died, after this time."""

_LOST = ("gloo", "connection closed by peer", "connection reset by peer", "broken pipe", "nccl")


class LostProcessError(RuntimeError):
    """Another process of the run died, or did not answer within :data:`TIMEOUT`."""


@dataclass(frozen=True, slots=True)
class World:
    """Process ``rank`` of ``size``. As a context manager it leaves the process group on exit.

    An error of a collective leaves the context as :class:`LostProcessError`, one line for a reader.

    >>> with World.start(torch.device("cpu")) as world:
    ...     world.rank, world.size, world.gather(["a"]), world.total([2.0, 3.0])
    (0, 1, ['a'], [2.0, 3.0])
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def start(cls, device: torch.device) -> World:
        """Join the process group of torchrun (gloo on a CPU, NCCL on CUDA); a world of one without torchrun."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls()
        cuda = device.type == "cuda"
        if cuda:
            torch.cuda.set_device(device)
        distributed.init_process_group("nccl" if cuda else "gloo", timeout=TIMEOUT, device_id=device if cuda else None)
        return cls(distributed.get_rank(), distributed.get_world_size())

    def __enter__(self) -> World:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.stop()
        elif self.size > 1 and _of_a_collective(error):  # the group is broken: leaving it could wait for the dead
            raise LostProcessError(
                f"process {self.rank} of {self.size}: another process of this run died or does not answer; "
                "resume the run (--resume) from its last checkpoint"
            ) from error

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which alone writes reports and logs."""
        return self.rank == 0

    def mine(self, items: Sequence[Item]) -> Sequence[Item]:
        """This process's share of ``items``, which all processes hold: every ``size``-th, starting at ``rank``."""
        return items[self.rank :: self.size]

    def gather(self, items: list[Item]) -> list[Item]:
        """The items of all processes in rank order, returned in every process. They must be picklable."""
        if self.size == 1:
            return list(items)
        parts: list[list[Item] | None] = [None] * self.size
        distributed.all_gather_object(parts, items)
        return [item for part in parts for item in part or ()]

    def total(self, numbers: Sequence[float]) -> list[float]:
        """The sum of each number over all processes, bitwise the same in every process."""
        return [sum(column) for column in zip(*self.gather([list(numbers)]), strict=True)]

    def most(self, count: int) -> int:
        """The largest ``count`` of all processes."""
        return max(self.gather([count]))

    def barrier(self) -> None:
        """Wait until every process has called this."""
        if self.size > 1:
            distributed.barrier()

    def stop(self) -> None:
        """Leave the process group."""
        if self.size > 1 and distributed.is_initialized():
            distributed.destroy_process_group()


ALONE = World()  # one process


def _of_a_collective(error: BaseException) -> bool:
    if isinstance(error, distributed.DistError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _LOST)
