"""Steps of a model without recurrent layers: all rows in one packed pass.

Letters: T rows (tokens) of a step, N rows whose logits are wanted, V vocabulary.
"""

from __future__ import annotations

import warnings

from torch import Tensor

from asyncthink.model.attention import PagedAttention, Step
from asyncthink.model.cuda_graphs import MAX_GRAPHS, CaptureError, CudaRecorder, Recorder, Rerun, StepGraphs
from asyncthink.model.hook import HookedModel
from asyncthink.model.recorded import RecordedSteps
from asyncthink_kernels.cache import StepPlan


class PackedSteps:
    """Runs a step the fastest way that it can: captured, recorded, or by the model itself.

    Args:
        hooked: the model.
        attention: its attention on the paged cache.
        kind: the model's type, for messages.
        unavailable: told under "graphs" why steps cannot be captured, once that is known.
        record: run steps that come again without the model's Python.
    """

    def __init__(
        self, hooked: HookedModel, attention: PagedAttention, kind: str, unavailable: dict[str, str], *, record: bool
    ) -> None:
        self.attention = attention
        self.graphs: StepGraphs | None = None
        self.recorded = RecordedSteps(hooked, attention) if record else None
        self._hooked, self._kind, self._unavailable = hooked, kind, unavailable

    def capture(self, recorder: Recorder | None = None, most: int = MAX_GRAPHS) -> None:
        """Run decode steps from static buffers, at most ``most`` kept; on a GPU as CUDA graphs."""
        device = self.attention.device
        recorder = recorder or (CudaRecorder(device) if device.type == "cuda" else Rerun())
        self.graphs = StepGraphs(self.attention, self._hooked.model, self.run, recorder, most)

    def forward(self, tokens: Tensor, plan: StepPlan, rows: Tensor) -> Tensor:
        """tokens [T], rows [N] int64 -> logits [N,V]. K and V of the tokens are written to the plan's slots."""
        if self.graphs is not None and self.graphs.takes(plan, rows):
            try:
                return self.graphs.step(plan, tokens)
            except CaptureError as error:
                self.graphs = None
                reason = self._unavailable["graphs"] = f"{self._kind} cannot be captured: {error}"
                warnings.warn(f"{reason}; every step runs eagerly", RuntimeWarning, stacklevel=3)
        step = self.attention.step(plan, tokens)
        if self.recorded is not None and self.recorded.takes(step):
            return self.recorded.step(step, rows, self.run)
        return self.run(step, rows.to(self.attention.device))

    def run(self, step: Step, rows: Tensor) -> Tensor:
        """One forward pass of the model -> logits [N,V] of rows [N]."""
        logits = self._hooked.run(step, step.tokens, step.positions, rows)
        if step.calls != len(self.attention.layers):
            raise RuntimeError(
                f"expected {len(self.attention.layers)} attention calls, got {step.calls}: "
                "the model was changed, or used by another thread, during the step"
            )
        return logits

    def refresh(self, weights_only: bool) -> None:
        """The model changed: forget the captured steps if weights were moved, and all recorded ones.

        ``weights_only``: nothing but weights changed. Then recorded steps stay that read them where they are.
        """
        if self.graphs is not None:
            self.graphs.refresh()
        if self.recorded is not None and not weights_only:
            self.recorded.clear()
