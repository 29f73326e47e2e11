"""Who is timed: one class each, all on the same problem, on the same shared pages."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from .problem import Problem

#: Largest relative error of a row's output, ||out - expected|| / ||expected||, of whoever is timed. The rounding of
#: outputs and of softmax weights to the dtype comes to about a quarter of it; a page left out of 100K tokens is more.
ERROR = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-4}


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """The largest ||actual - expected|| / ||expected|| over rows and heads; [T, Hq, D] both. NaN where one is NaN."""
    difference = (actual.double() - expected).norm(dim=-1)
    return float((difference / expected.norm(dim=-1)).max())


class Contestant(ABC):
    """Made for a problem: what is made here exists before any step, and is never timed.

    `plan` is what a step costs once, before its layers run, with page tables at hand; `run` is one layer.
    """

    name: ClassVar[str]
    ours: ClassVar[bool] = False
    peer: ClassVar[str] = ""  # what `--peers` calls it
    detail = ""  # what ran: a tile, a backend

    def __init__(self, problem: Problem) -> None:
        self.problem = problem

    @classmethod
    def missing(cls, device: str) -> str | None:
        """None if it can run on device type `device` at all, else one line that says why not."""
        return None

    @classmethod
    def why_not(cls, problem: Problem) -> str | None:
        """None if it can run this problem, else one line that says why not."""
        return cls.missing(problem.device.type)

    def plan(self) -> None:
        """Nothing to plan, unless a class says otherwise."""
        return

    @abstractmethod
    def run(self) -> Tensor:
        """The attention of all rows, [T, Hq, D]."""

    def check(self) -> float:
        """The relative error of `run`; raises as `verify` does."""
        return self.verify(self.run())

    def verify(self, out: Tensor) -> float:
        """The relative error of an output; ValueError where it is too large or not a number."""
        error = relative_error(out, self.problem.expected)
        limit = ERROR[self.problem.dtype]
        if not error <= limit:
            raise ValueError(f"wrong result: relative error {error:.2g}, allowed {limit:.2g}")
        return error
