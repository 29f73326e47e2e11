"""A recorded pass as a program on memory that stays where it is: :class:`StepProgram`.

Native ops in a row become one call from Python (``csrc/cpu/step_program.h``); what they do not compute is a call of
torch's, whose result is copied to its place. Views are made once. A place is used again when nobody reads it any more.

Letters: T rows of a step, N rows whose logits are wanted, V vocabulary, Hq query heads, Dv head dim of V, B rows with
states in S slots.
"""

from __future__ import annotations

import functools
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from asyncthink.model.attention import Step
from asyncthink.model.call_graph import owners
from asyncthink.model.native_calls import EMITTERS, PACKED, QUANTIZED, NativeCalls
from asyncthink.model.patterns import fused
from asyncthink.model.places import Memory
from asyncthink.model.recorder import Call, Recording, Register
from asyncthink.model.recurrent import StateKey
from asyncthink_kernels.ops.step_program import PARTS, NativeProgram

_LINEAR = (PACKED, QUANTIZED)


class StepProgram:
    """Runs steps of the sizes of ``recording`` on the caches ``places`` [L] of its layers' K and V, in ``memory``.

    ``states``: the slots [S, ...] of each recurrent state.
    """

    def __init__(
        self,
        recording: Recording,
        places: Sequence[tuple[Tensor, Tensor]],
        memory: Memory,
        states: Mapping[StateKey, Tensor] | None = None,
    ) -> None:
        self._builder = builder = _Builder(recording, places, memory, states or {})
        self._inputs = {name: builder.tensors[register] for name, register in recording.inputs.items()}
        builder.build()
        self._logits = builder.tensors[recording.logits]
        self._work: list[Callable[[], object] | NativeProgram] = builder.work
        used = {register for call in builder.calls for register in call.registers}
        self._constants = [tensor for register, tensor in recording.constants.items() if register in used]
        self._where = [tensor.data_ptr() for tensor in self._constants]
        programs = [work for work in self._work if isinstance(work, NativeProgram)]
        self.ops = sum((program.ops for program in programs), Counter[str]())  # native ones, by their names
        self.native = self.ops.total()
        self.others = len(self._work) - len(programs)
        del self._builder

    def in_place(self) -> bool:
        """Whether the weights still lie where the program reads them."""
        return [tensor.data_ptr() for tensor in self._constants] == self._where

    @property
    def seconds(self) -> dict[str, float]:
        """Of all runs so far, in native ops, by :data:`asyncthink_kernels.ops.step_program.PARTS`."""
        native = [work.seconds for work in self._work if isinstance(work, NativeProgram)]
        return {part: sum(each[part] for each in native) for part in PARTS}

    def run(self, step: Step, slots: Tensor | None = None, **inputs: Tensor) -> Tensor:
        """input_ids, position_ids [1,T] and logits_to_keep [N] of this step -> logits [1,N,V], valid until the next.

        Of a pass with states in ``slots`` [B]: input_ids, position_ids [B,1] and logits_to_keep [1] -> logits [B,1,V].
        """
        for name, tensor in self._inputs.items():
            tensor.copy_(inputs[name])
        plan, rotations = step.plan, step.rotations
        angles = [(each["cos"], each["sin"], each.get("interleaved", False)) if each else None for each in rotations]
        angles = angles if any(angles) else []
        for work in self._work:
            if isinstance(work, NativeProgram):
                work.run(plan.slots, plan.tensors, angles, slots)
            else:
                work()
        return self._logits


class _Builder:
    """Goes through the calls once, in their order."""

    def __init__(
        self,
        recording: Recording,
        places: Sequence[tuple[Tensor, Tensor]],
        memory: Memory,
        states: Mapping[StateKey, Tensor],
    ) -> None:
        self.recording = recording
        self.samples = recording.samples
        self.calls = _linears_together(fused(recording), recording.samples)
        self.tensors: dict[Register, Tensor] = dict(recording.constants)
        self.native = NativeCalls(self.tensors, places, states)
        for register in recording.inputs.values():
            self.tensors[register] = torch.empty_like(self.samples[register.number])
        self.work: list[Callable[[], object] | NativeProgram] = []
        self._memory = memory.places()
        self._owners: dict[Register, Register] = {}  # of a view: whose memory it is
        self._last = self._last_uses()

    def build(self) -> None:
        for number, call in enumerate(self.calls):
            if call.view:
                self._view(call)
            else:
                for out in call.outs:
                    self.tensors[out] = self._memory.take(self.samples[out.number])
                self._emit(call)
            for register in self._last.get(number, ()):
                self._memory.give(self.tensors[register])

    def _last_uses(self) -> dict[int, list[Register]]:
        """By call, the results whose memory nobody reads after it, through whatever view."""
        last: dict[Register, int] = {}
        self._owners = owners(self.calls)
        for number, call in enumerate(self.calls):
            last |= {self._owners.get(register, register): number for register in (*call.registers, *call.outs)}
        kept = {*self.recording.constants, *self.recording.inputs.values()}
        kept.add(self._owners.get(self.recording.logits, self.recording.logits))
        by_call: dict[int, list[Register]] = defaultdict(list)
        for register, number in last.items():
            if register not in kept and register not in self._owners:
                by_call[number].append(register)
        return by_call

    def _view(self, call: Call) -> None:
        made = call.op(
            *self.native.tensor(call.args), **{name: self.native.tensor(value) for name, value in call.kwargs.items()}
        )
        for out, tensor in zip(call.outs, made if isinstance(made, (list, tuple)) else (made,), strict=True):
            self.tensors[out] = tensor

    def _emit(self, call: Call) -> None:
        if call.op in EMITTERS:
            EMITTERS[call.op](self.native, self._program(), call)
            return
        args, kwargs = (
            self.native.tensor(call.args),
            {name: self.native.tensor(value) for name, value in call.kwargs.items()},
        )
        outs = [self.tensors[out] for out in call.outs]
        if call.op is torch.ops.aten.to.dtype:
            self.work.append(functools.partial(outs[0].copy_, args[0]))  # which converts
            return
        run = functools.partial(_call_torch, call.op, args, kwargs, outs)
        self.work.append(functools.partial(call.op, *args, **kwargs) if call.written else run)

    def _program(self) -> NativeProgram:
        """The native program under way, or a new one."""
        if not self.work or not isinstance(self.work[-1], NativeProgram):
            self.work.append(NativeProgram())
        last = self.work[-1]
        assert isinstance(last, NativeProgram)
        return last


def _linears_together(calls: list[Call], samples: Sequence[Tensor]) -> list[Call]:
    """Linear layers of one input become one call, at the place of the first: (x, the other arguments of each)."""
    groups: dict[Any, list[Call]] = defaultdict(list)
    memory = owners(calls)
    written = {memory.get(register, register) for call in calls for register in call.written}

    def kind(call: Call) -> Any:
        if memory.get(call.args[0], call.args[0]) in written:
            return call.outs  # its input is another one later
        if call.op is PACKED:
            return call.op, call.args[0]
        _, quants, _, mins, *_ = call.args  # activations are made to integers once for one format
        return call.op, call.args[0], samples[quants.number].shape[2], mins is None

    for call in calls:
        if call.op in _LINEAR:
            groups[kind(call)].append(call)
    together = []
    for call in calls:
        if call.op not in _LINEAR:
            together.append(call)
        elif (group := groups[kind(call)])[0] is call:
            parts = [member.args[1:] for member in group]
            outs = tuple(out for member in group for out in member.outs)
            together.append(Call(call.op, (call.args[0], parts), {}, outs))
    return together


def _call_torch(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any], outs: list[Tensor]) -> None:
    made = op(*args, **kwargs)
    for out, tensor in zip(outs, made if isinstance(made, (list, tuple)) else (made,), strict=True):
        out.copy_(tensor)
