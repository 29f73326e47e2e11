"""Optimizer steps that leave out those without a gradient and those that are not finite."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from asyncthink.train.distributed import ALONE, World
from asyncthink.train.sharding import local, whole


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Optimizer steps that changed no weight: silent, skipped, and skipped since the last step that was taken."""

    silent: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0


class Steps:
    """Takes the optimizer steps of a run.

    A step is *silent* when its gradient is 0: no episode had an advantage, or all ratios were clipped. It is *skipped*
    when its loss or its gradient norm is not finite. Both leave weights, moments and AdamW's step count unchanged, so
    neither weight decay nor momentum changes a weight without a gradient. The learning rate is a function of the run's
    step and advances.

    Args:
        optimizer: its parameters are clipped and updated.
        clip: largest gradient norm; larger gradients are scaled down to it.
        max_skipped: consecutive skipped steps that stop the run.
        left_out: the counts of the run so far.

    >>> weight = nn.Parameter(torch.ones(1))
    >>> steps = Steps(torch.optim.SGD([weight], lr=0.5), clip=1.0)
    >>> weight.grad = torch.tensor([float("nan")])
    >>> steps.take(loss=2.0), weight.tolist(), steps.left_out
    (nan, [1.0], LeftOut(silent=0, skipped=1, skipped_in_a_row=1))
    >>> weight.grad = torch.tensor([0.5])
    >>> steps.take(loss=2.0), weight.tolist()
    (0.5, [0.75])
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        clip: float,
        max_skipped: int = 5,
        left_out: LeftOut | None = None,
    ) -> None:
        self.optimizer, self.clip, self.max_skipped = optimizer, clip, max_skipped
        self.left_out = left_out or LeftOut()
        self._parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def divide(self, divisor: float) -> None:
        """Divide the gradients, which are sums so far, by ``divisor``."""
        for parameter in self._parameters:
            if parameter.grad is not None:
                parameter.grad /= divisor

    def take(self, loss: float) -> float:
        """Clip the gradients, update unless silent or skipped, drop the gradients; returns the norm before clipping.

        With several processes, ``loss`` must be the sum over all of them, and all must call this. Loss and norm are
        bitwise the same in every process, so all take the same decision.

        Raises RuntimeError at the ``max_skipped``-th consecutive skipped step.
        """
        norm = float(whole(nn.utils.clip_grad_norm_(self._parameters, self.clip)))
        silent, skipped, consecutive = self.left_out.silent, self.left_out.skipped, self.left_out.skipped_in_a_row
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self.left_out = LeftOut(silent, skipped + 1, consecutive + 1)
        elif norm == 0:
            self.left_out = LeftOut(silent + 1, skipped, consecutive)
        else:
            self.optimizer.step()
            self.left_out = LeftOut(silent, skipped, 0)
        self.optimizer.zero_grad(set_to_none=True)
        if self.left_out.skipped_in_a_row >= self.max_skipped:
            raise RuntimeError(
                f"training: expected a finite loss and gradient, got loss {loss} and gradient norm {norm}; "
                f"{self.left_out.skipped_in_a_row} steps in a row were skipped (max_skipped). "
                "The last checkpoint holds finite numbers"
            )
        return norm


def check_finite(what: str, tensors: Iterable[tuple[str, Tensor]], world: World = ALONE) -> None:
    """Raises ValueError if a tensor of the pairs ``(name, tensor)`` holds NaN or infinity; names the first one.

    Each process looks at the rows that it holds, and all raise if one does.
    """
    count, broken = 0, []
    for name, tensor in tensors:
        count += 1
        if not bool(torch.isfinite(local(tensor)).all()):
            broken.append(name)
    broken = list(dict.fromkeys(world.gather(broken)))
    if broken:
        raise ValueError(
            f"{what}: expected finite numbers, got NaN or infinity in {broken[0]} ({len(broken)} of {count} tensors)"
        )
