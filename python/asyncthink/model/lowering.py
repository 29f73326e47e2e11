"""A recorded pass as a program on memory that stays where it is: :class:`StepProgram`.

Native ops in a row become one call from Python (``csrc/cpu/step_program.h``); what they do not compute is a call of
torch's, whose result is copied to its place. Views are made once. A place is used again when nobody reads it any more.

Letters: T rows of a step, N rows whose logits are wanted, V vocabulary, Hq query heads, Dv head dim of V.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from asyncthink.model.attention import Step
from asyncthink.model.patterns import ADD, GATE, NORM, ROTATE, fused
from asyncthink.model.places import Memory
from asyncthink.model.recorder import ATTENTION, Call, Recording, Register
from asyncthink_kernels.ops.step_program import PARTS, NativeProgram, lanes_of_sums

_PACKED = torch.ops.asyncthink.packed_linear.default
_QUANTIZED = torch.ops.asyncthink.quantized_linear.default
_LINEAR = (_PACKED, _QUANTIZED)


class StepProgram:
    """Runs steps of the sizes of ``recording`` on the caches ``places`` [L] of its layers' K and V, in ``memory``."""

    def __init__(self, recording: Recording, places: Sequence[tuple[Tensor, Tensor]], memory: Memory) -> None:
        self._builder = builder = _Builder(recording, places, memory)
        self._inputs = {name: builder.tensors[register] for name, register in recording.inputs.items()}
        builder.build()
        self._logits = builder.tensors[recording.logits]
        self._work: list[Callable[[], object] | NativeProgram] = builder.work
        used = {register for call in builder.calls for register in call.registers}
        self._constants = [tensor for register, tensor in recording.constants.items() if register in used]
        self._where = [tensor.data_ptr() for tensor in self._constants]
        self.native = sum(len(each) for each in self._work if isinstance(each, NativeProgram))
        self.others = sum(not isinstance(each, NativeProgram) for each in self._work)
        del self._builder

    def in_place(self) -> bool:
        """Whether the weights still lie where the program reads them."""
        return [tensor.data_ptr() for tensor in self._constants] == self._where

    @property
    def seconds(self) -> dict[str, float]:
        """Of all runs so far, in native ops, by :data:`asyncthink_kernels.ops.step_program.PARTS`."""
        native = [work.seconds for work in self._work if isinstance(work, NativeProgram)]
        return {part: sum(each[part] for each in native) for part in PARTS}

    def run(self, step: Step, **inputs: Tensor) -> Tensor:
        """input_ids, position_ids [1,T] and logits_to_keep [N] of this step -> logits [N,V], valid until the next."""
        for name, tensor in self._inputs.items():
            tensor.copy_(inputs[name])
        plan, rotations = step.plan, step.rotations
        angles = [(each["cos"], each["sin"], each.get("interleaved", False)) if each else None for each in rotations]
        angles = angles if any(angles) else []
        for work in self._work:
            if isinstance(work, NativeProgram):
                work.run(plan.slots, plan.tensors, angles)
            else:
                work()
        return self._logits[0]


class _Builder:
    """Goes through the calls once, in their order."""

    def __init__(self, recording: Recording, places: Sequence[tuple[Tensor, Tensor]], memory: Memory) -> None:
        self.recording, self.caches = recording, places
        self.samples = recording.samples
        self.calls = _linears_together(fused(recording), recording.samples)
        self.tensors: dict[Register, Tensor] = dict(recording.constants)
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
        for number, call in enumerate(self.calls):
            reads = call.registers
            if call.view:
                self._owners |= {out: self._owners.get(reads[0], reads[0]) for out in call.outs}
            last |= {self._owners.get(register, register): number for register in (*reads, *call.outs)}
        kept = {*self.recording.constants, *self.recording.inputs.values()}
        kept.add(self._owners.get(self.recording.logits, self.recording.logits))
        by_call: dict[int, list[Register]] = defaultdict(list)
        for register, number in last.items():
            if register not in kept and register not in self._owners:
                by_call[number].append(register)
        return by_call

    def _tensor(self, tree: Any) -> Any:
        if isinstance(tree, Register):
            return self.tensors[tree]
        return type(tree)(map(self._tensor, tree)) if isinstance(tree, (list, tuple)) else tree

    def _view(self, call: Call) -> None:
        made = call.op(*self._tensor(call.args), **{name: self._tensor(value) for name, value in call.kwargs.items()})
        for out, tensor in zip(call.outs, made if isinstance(made, (list, tuple)) else (made,), strict=True):
            self.tensors[out] = tensor

    def _emit(self, call: Call) -> None:
        emitters: dict[Any, Callable[[NativeProgram, Call], None]] = {
            NORM: self._norm, ROTATE: self._rotate, GATE: self._gate, ADD: self._add, ATTENTION: self._attention,
            _PACKED: self._packed, _QUANTIZED: self._quantized,
        }  # fmt: skip
        emit = emitters.get(call.op)
        if emit is not None:
            emit(self._program(), call)
            return
        args, kwargs = self._tensor(call.args), {name: self._tensor(value) for name, value in call.kwargs.items()}
        outs = [self.tensors[out] for out in call.outs]
        self.work.append(functools.partial(_call_torch, call.op, args, kwargs, outs))

    def _program(self) -> NativeProgram:
        """The native program under way, or a new one."""
        if not self.work or not isinstance(self.work[-1], NativeProgram):
            self.work.append(NativeProgram())
        last = self.work[-1]
        assert isinstance(last, NativeProgram)
        return last

    def _norm(self, program: NativeProgram, call: Call) -> None:
        x, weight, eps = self._tensor(call.args)
        lanes = lanes_of_sums(x.shape[-1])
        assert lanes is not None  # else it is no pattern
        program.norm(_as_heads(x), weight, _as_heads(self.tensors[call.outs[0]]), eps, lanes)

    def _rotate(self, program: NativeProgram, call: Call) -> None:
        x, cos, sin = self._tensor(call.args)
        y = self.tensors[call.outs[0]]
        program.rotate(x[0].transpose(0, 1), cos[0, 0], sin[0, 0], y[0].transpose(0, 1))

    def _gate(self, program: NativeProgram, call: Call) -> None:
        gate, up, activation = call.args
        y = self.tensors[call.outs[0]]
        table = _table(activation.op, y.dtype, activation.args[1:], tuple(activation.kwargs.items()))
        program.gate(_as_rows(self.tensors[gate]), _as_rows(self.tensors[up]), table, _as_rows(y))

    def _add(self, program: NativeProgram, call: Call) -> None:
        a, b = self._tensor(call.args)
        program.add(_as_rows(a), _as_rows(b), _as_rows(self.tensors[call.outs[0]]))

    def _attention(self, program: NativeProgram, call: Call) -> None:
        q, k, v, layer = self._tensor(call.args)
        options = {name: self._tensor(value) for name, value in call.kwargs.items()}
        sinks = options["s_aux"]
        k_cache, v_cache = self.caches[layer]
        program.attention(
            q[0].transpose(0, 1),
            k[0].transpose(0, 1),
            v[0].transpose(0, 1),
            k_cache,
            v_cache,
            self.tensors[call.outs[0]][0],
            scale=options["scaling"],
            window=options["sliding_window"],
            softcap=options["softcap"],
            sinks=None if sinks is None else sinks.float(),
            layer=layer,
        )

    def _packed(self, program: NativeProgram, call: Call) -> None:
        x, parts = call.args
        program.linears(
            self.tensors[x],
            [(*self._tensor(part[:2]), self.tensors[out]) for part, out in zip(parts, call.outs, strict=True)],
        )

    def _quantized(self, program: NativeProgram, call: Call) -> None:
        x, parts = call.args
        program.quantized_linears(
            self.tensors[x],
            [(*self._tensor(part[:4]), self.tensors[out]) for part, out in zip(parts, call.outs, strict=True)],
        )


def _linears_together(calls: list[Call], samples: Sequence[Tensor]) -> list[Call]:
    """Linear layers of one input become one call, at the place of the first: (x, the other arguments of each)."""
    groups: dict[Any, list[Call]] = defaultdict(list)

    def kind(call: Call) -> Any:
        if call.op is _PACKED:
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


def _as_rows(x: Tensor) -> Tensor:
    """[..., I] -> [T, I]."""
    return x.view(-1, x.shape[-1])


def _as_heads(x: Tensor) -> Tensor:
    """[1, T, I] or [1, T, H, I] -> [T, H, I]; other shapes as rows of one head."""
    return x[0] if x.ndim == 4 else _as_rows(x).unsqueeze(1)


@functools.cache
def _table(op: Any, dtype: torch.dtype, args: tuple[Any, ...], kwargs: tuple[tuple[str, Any], ...]) -> Tensor:
    """What ``op`` makes of each of the 65,536 numbers of a 16-bit dtype, by their bits."""
    numbers = torch.arange(1 << 16, dtype=torch.int32, device="cpu").to(torch.int16).view(dtype)
    table: Tensor = op(numbers, *args, **dict(kwargs))
    return table
