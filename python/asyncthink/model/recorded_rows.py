"""Decode passes of models with recurrent layers on a CPU without transformers' Python: :class:`RecordedRows`.

As :mod:`asyncthink.model.recorded`, for passes of one new token a row. What such a pass reads and writes besides K and
V are the states of its rows: a program finds them by the slots that come with each pass, and it serves only where
logits, K, V **and states** are the same bit by bit.

Letters: B rows of a pass, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from asyncthink.model.attention import PagedAttention, Step
from asyncthink.model.hook import HookedModel
from asyncthink.model.lowering import StepProgram
from asyncthink.model.recorded import RecordedSteps, tensors
from asyncthink.model.recorder import Recording, record_rows
from asyncthink.model.recurrent import StateStorage


class RowStep(Step):
    """A :class:`Step` of B rows with as many tokens each, whose states lie in ``slots`` [B]."""

    slots: Sequence[int] = ()


class RecordedRows(RecordedSteps):
    """Runs passes by programs where it can. ``rows`` of its methods are the columns of the logits: the one token."""

    def __init__(self, hooked: HookedModel, attention: PagedAttention, states: StateStorage) -> None:
        super().__init__(hooked, attention)
        self._storage = states

    def _key(self, step: RowStep, rows: Tensor) -> tuple[int, int]:
        return len(step.slots), len(step.slots)

    def _record(self, step: RowStep, rows: Tensor) -> tuple[Tensor, Recording]:
        """On copies of the states: where the pass cannot be recorded, nothing is lost."""
        cache, lent = self._storage.lend(step.slots, fresh=False, copied=True)
        logits, recording = record_rows(self._hooked, step, cache, lent, rows, tensors(self._hooked))
        self._storage.take_back(cache, step.slots)
        return logits, recording

    def _program(self, recording: Recording) -> StepProgram:
        return StepProgram(recording, self._places, self.memory, self._storage.tensors)

    def _held(self, step: RowStep) -> list[Tensor]:
        """And the states."""
        return [*super()._held(step), *(rows.clone() for rows in self._storage.rows(step.slots).values())]

    def _put_back(self, step: RowStep, held: list[Tensor]) -> None:
        states = list(self._storage.tensors.values())
        super()._put_back(step, held[: -len(states)])
        for slots, rows in zip(states, held[-len(states) :], strict=True):
            slots[torch.tensor(step.slots, device="cpu")] = rows

    def _replayed(self, program: StepProgram, step: RowStep, rows: Tensor) -> Tensor:
        """Logits [B,1,V], valid until the next pass."""
        hooked, B = self._hooked, len(step.slots)
        inputs = {"input_ids": step.tokens.view(B, 1), "position_ids": step.positions.view(B, 1)}
        inputs["logits_to_keep"] = rows
        with hooked.exclusive(), torch.inference_mode():
            if hooked.linears is not None:
                hooked.linears.copy_changed()  # type: ignore[attr-defined]
            return program.run(step, torch.tensor(step.slots, device="cpu"), **inputs)
