"""The calls of a recorded pass, and who made what of whom: :class:`CallGraph`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from asyncthink.model.recorder import STORE, Call, Recording, Register

aten = torch.ops.aten

ROUNDINGS = (aten.to.dtype, aten.type_as.default)
ACTIVATIONS = (aten.silu.default, aten.gelu.default, aten.relu.default, aten.tanh.default, aten.sigmoid.default)


def owners(calls: Sequence[Call]) -> dict[Register, Register]:
    """Of each view: the register whose memory it lies in."""
    owner: dict[Register, Register] = {}
    for call in calls:
        if call.view:
            first = call.registers[0]
            owner |= {out: owner.get(first, first) for out in call.outs}
    return owner


class CallGraph:
    """Looks at a call and those that made its arguments."""

    def __init__(self, recording: Recording, calls: Sequence[Call]) -> None:
        self.samples, self.constants = recording.samples, recording.constants
        self.makers = {out: call for call in calls for out in call.outs}
        self.uses = Counter(register for call in calls for register in call.registers)
        self._owners = owners(calls)
        self.writers: dict[Register, list[Call]] = {}  # by whose memory they write
        for call in calls:
            for register in call.written:
                self.writers.setdefault(self.owner(register), []).append(call)
        self.stored = {call.args[0]: call.args[1] for call in calls if call.op is STORE}

    def owner(self, register: Register) -> Register:
        """The register whose memory it lies in."""
        return self._owners.get(register, register)

    def is_written(self, register: Register) -> bool:
        """Whether a call writes into its memory, so that it may hold something else later."""
        return self.owner(register) in self.writers

    def sample(self, register: Register) -> Tensor:
        return self.samples[register.number]

    def made(self, register: Any, *ops: Any) -> Call | None:
        """The call of one of these ops that made the register."""
        call = self.makers.get(register) if isinstance(register, Register) else None
        return call if call is not None and call.op in ops else None

    def pair(self, call: Call | None, op: Any) -> Iterator[tuple[Register, Register]]:
        """Both orders of the two tensors of a sum or product."""
        if call is not None and call.op is op and len(call.args) == 2 and not call.kwargs:
            a, b = call.args
            if isinstance(a, Register) and isinstance(b, Register):
                yield a, b
                yield b, a
