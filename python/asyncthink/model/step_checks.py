"""What a step must satisfy before anything is written: tokens, plan and rows that fit together and the model.

Letters: T rows (tokens) of a step, N rows whose logits are wanted.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from asyncthink_kernels.cache import StatefulPlan, StepPlan


@dataclass(frozen=True, slots=True)
class StepChecks:
    """The limits of one model.

    ``vocabulary`` is the number of token ids; ``padding`` the id to which the model gives no position, or None;
    ``max_length`` the number of positions, or None where there is no limit.
    """

    vocabulary: int
    padding: int | None
    max_length: int | None

    def check(self, tokens: Tensor, plan: StepPlan | StatefulPlan, rows: Tensor) -> None:
        """Raises ValueError unless tokens [T] and rows [N] fit the plan of T rows, and all of them the model."""
        T = plan.slots.shape[0]
        if tokens.dtype != torch.int64 or tuple(tokens.shape) != (T,):
            raise ValueError(
                f"tokens must be [{T}] int64, as the plan has rows, got {list(tokens.shape)} {tokens.dtype}"
            )
        if rows.ndim != 1 or (rows.numel() and not 0 <= int(rows.min()) <= int(rows.max()) < T):
            raise ValueError(f"logits_rows must be row numbers in [0, {T}), got {rows.tolist()}")
        if tokens.device.type == "cpu":  # reading ids on a GPU would wait for it; there the embedding stops on a bad id
            self._check_ids(tokens)
        if self.max_length is not None and int(plan.positions.max()) >= self.max_length:
            raise ValueError(f"this model takes {self.max_length} positions, got position {int(plan.positions.max())}")

    def _check_ids(self, tokens: Tensor) -> None:
        lowest, highest = int(tokens.min()), int(tokens.max())
        if not 0 <= lowest <= highest < self.vocabulary:
            raise ValueError(f"tokens must be ids in [0, {self.vocabulary}), got {lowest}..{highest}")
        if self.padding is not None and self.padding in tokens:
            raise ValueError(
                f"tokens: expected no padding, to which this model gives no position of its own, got {self.padding}"
            )
