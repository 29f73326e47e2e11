"""Decode steps from static buffers, captured once for each capacity and then replayed: :class:`StepGraphs`.

A small model's decode step on a GPU takes less time than Python needs to launch its kernels. A CUDA graph launches all
of them at once, provided that they read and write where they did when it was captured: so the step's plan, tokens,
shift tables and logits lie in buffers that stay, filled in place before each replay. What is computed is the ordinary
step on rows padded to a capacity.

Letters: T rows of a step, V vocabulary.
"""

from __future__ import annotations

import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from asyncthink.model.attention import PagedAttention, Step, load
from asyncthink.model.checks import one_line
from asyncthink_kernels.cache import Capacity, PlanBuffers, StepPlan

MAX_ROWS = 256
"""Largest captured step, in rows. Bigger steps run eagerly; their launch cost is negligible."""

MAX_GRAPHS = 32
"""Captured steps kept at once; the least recently used goes first."""

Work = Callable[[], None]


class CaptureError(RuntimeError):
    """The model's step cannot be captured; the message says why."""


class Recorder(Protocol):
    """Turns work on static buffers into something that does it again."""

    def record(self, work: Work) -> Work:
        """Do ``work`` any number of times, the first of them uncaptured; CaptureError where it cannot be captured."""
        ...


class Rerun:
    """Captures nothing: the work itself is run again. For tests, and to tell a wrong capture from a wrong buffer."""

    def record(self, work: Work) -> Work:
        return work


class CudaRecorder:
    """Captures the work as a CUDA graph; graphs alive share a memory pool, since no two of them ever run at once.

    The first work is also run once with torch's synchronisation debug mode at "error" (for the whole process, as long
    as it takes): where the model makes the host wait for the GPU, it says so there. In a capture that is an error too,
    but one that leaves torch's allocator in a state not made for going on.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool: Any = None
        self._graphs: weakref.WeakSet[Any] = weakref.WeakSet()
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._proven = False

    def record(self, work: Work) -> Work:
        graph = torch.cuda.CUDAGraph()
        if not self._graphs:  # torch takes nothing more into a pool whose last graph is gone
            self._pool = torch.cuda.graph_pool_handle()
        caller = torch.cuda.current_stream(self._device)
        # Entered anew, the caller's stream is current again afterwards, which a failed capture does not see to.
        with torch.cuda.device(self._device), torch.cuda.stream(caller):
            self._stream.wait_stream(caller)
            try:
                with torch.cuda.stream(self._stream):
                    work()  # what is made on first use is made now; errors are the model's own
                try:
                    self._prove(work)
                    with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                        work()
                except Exception as error:
                    # Leaving a broken capture fails too; what broke it comes first.
                    raise CaptureError(one_line(error.__context__ or error)) from error
            finally:
                caller.wait_stream(self._stream)
        self._graphs.add(graph)
        return graph.replay

    def _prove(self, work: Work) -> None:
        if self._proven:
            return
        before = torch.cuda.get_sync_debug_mode()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # "a prototype feature"
                torch.cuda.set_sync_debug_mode("error")
            with torch.cuda.stream(self._stream):
                work()
        finally:
            torch.cuda.set_sync_debug_mode(before)
        self._proven = True


class _StaticStep:
    """The buffers of one capacity, and what computes the step that lies in them."""

    def __init__(self, attention: PagedAttention, capacity: Capacity) -> None:
        self._attention = attention
        self._buffers = PlanBuffers(capacity, attention.device)
        self._shift_tables = attention.shift_tables()
        self._shifts = torch.zeros(capacity.shifts, dtype=torch.int32, device="cpu")
        self.rows = torch.arange(capacity.rows, device=attention.device)
        self.replay: Work | None = None

    def load(self, plan: StepPlan, tokens: Tensor) -> None:
        self._shifts.zero_()[: len(plan.shifts)] = plan.shifts
        self._shift_tables.load(self._shifts)
        load(self._buffers, plan, tokens)

    def step(self) -> Step:
        buffers, rotations = self._buffers, self._shift_tables.load(self._shifts)
        return Step(self._attention, buffers.plan, buffers.tokens, rotations)


class StepGraphs:
    """Runs decode steps from static buffers, one set of them and one recording for each :class:`Capacity`.

    A decode step is one whose logits are wanted for all rows in their order, at most :data:`MAX_ROWS`, and whose plan
    lies on the CPU. A capacity's first step is recorded; later ones are replays, in which the host launches one graph
    and waits for nothing. Beyond ``most`` recordings the one that was used longest ago is dropped.

    A recording repeats kernels, not Python: it sees new values of the weights where they lie, and nothing else that
    changes in the model. :meth:`refresh` forgets what has become wrong because weights have moved; after a change of
    another kind (hooks, adapters switched on or off) call :meth:`clear`.

    Args:
        attention: the attention whose steps these are.
        model: whose weights are watched by :meth:`refresh`.
        run: computes logits [N,V] of the rows [N] of a step.
        recorder: what captures and replays.
        most: recordings kept.
    """

    def __init__(
        self,
        attention: PagedAttention,
        model: nn.Module,
        run: Callable[[Step, Tensor], Tensor],
        recorder: Recorder,
        most: int = MAX_GRAPHS,
    ) -> None:
        self._attention, self._model, self._run, self._recorder = attention, model, run, recorder
        self._most = most
        self._steps: OrderedDict[Capacity, _StaticStep] = OrderedDict()
        # By rows, not by recording: logits are what is large here, and each is read before the next replay.
        self._logits: dict[int, Tensor] = {}
        self._places = self._find()

    @property
    def capacities(self) -> tuple[Capacity, ...]:
        """What is recorded now, the latest used last."""
        return tuple(self._steps)

    def takes(self, plan: StepPlan, rows: Tensor) -> bool:
        """Whether a step that wants the logits of ``rows`` is one of ours: all rows in order, its plan on the CPU."""
        T = len(plan.slots)
        if not len(rows) == T <= MAX_ROWS or rows.device.type != "cpu" or plan.slots.device.type != "cpu":
            return False
        return torch.equal(rows, torch.arange(T, device="cpu"))

    @torch.inference_mode()
    def step(self, plan: StepPlan, tokens: Tensor) -> Tensor:
        """tokens [T] int64 and a plan on the CPU -> logits [T,V].

        CaptureError where the model cannot be captured: then nothing is lost but the attempt, as K and V that it wrote
        are those that an eager step writes again.
        """
        capacity = Capacity.of(plan)
        step = self._steps.pop(capacity, None) or _StaticStep(self._attention, capacity)
        step.load(plan, tokens)
        if step.replay is None:
            step.replay = self._recorder.record(lambda: self._compute(step))
        step.replay()
        self._steps[capacity] = step
        if len(self._steps) > self._most:
            self._steps.popitem(last=False)
        return self._logits[capacity.rows][: len(plan.slots)].clone()

    def refresh(self) -> None:
        """The weights changed: forget all recordings if any of them lies elsewhere now, or tells no address."""
        places = self._find()
        if places != self._places or 0 in places:  # 0: a subclass of Tensor that wraps others
            self.clear()
            self._places = places

    def clear(self) -> None:
        """Forget all recordings and their buffers."""
        self._steps.clear()
        self._logits.clear()

    def _compute(self, step: _StaticStep) -> None:
        logits = self._run(step.step(), step.rows)
        rows = len(step.rows)
        if rows not in self._logits:  # in the first, uncaptured run
            self._logits[rows] = torch.empty_like(logits, memory_format=torch.contiguous_format)
        self._logits[rows].copy_(logits)

    def _find(self) -> list[int]:
        return [tensor.data_ptr() for tensor in (*self._model.parameters(), *self._model.buffers())]
