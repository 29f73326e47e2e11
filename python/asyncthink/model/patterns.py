"""Calls of a recorded pass that one native op computes: :func:`fused`.

A pattern is found by what computes what, not by names of models: the norm of squares, the rotation by halves, the gate
of an MLP. Its native op rounds as torch does, call by call, so results have the same bits; the recorded step is
compared with the model's own before it is used (:mod:`asyncthink.model.recorded`).

Letters: T rows, H heads, D head dim, I features.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from asyncthink.model.recorder import Call, Recording, Register
from asyncthink_kernels.ops.step_program import lanes_of_sums

aten = torch.ops.aten
NORM, ROTATE, GATE, ADD = "norm", "rotate", "gate", "add"
"""(x, weight, eps), (x, cos, sin), (gate, up, the call between them) and (a, b)."""

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_ACTIVATIONS = (aten.silu.default, aten.gelu.default, aten.relu.default, aten.tanh.default, aten.sigmoid.default)


def fused(recording: Recording) -> list[Call]:
    """The calls of a recording with equal views made once, native ops in the place of patterns, and nothing unused."""
    calls = _equal_views_once(recording)
    finder = _Finder(recording, calls)
    return _used([finder.replaced(call) for call in calls], recording)


def _equal_views_once(recording: Recording) -> list[Call]:
    """Views of the same kind of the same register become one: layers that read one input are seen to."""
    same: dict[Register, Register] = {}
    made: dict[str, Register] = {}
    calls = []
    for call in recording.calls:
        call = _renamed(call, same)
        if call.view and len(call.outs) == 1:
            first = made.setdefault(f"{call.op} {call.args} {call.kwargs}", call.outs[0])
            if first != call.outs[0]:
                same[call.outs[0]] = first
                continue
        calls.append(call)
    recording.logits = same.get(recording.logits, recording.logits)
    return calls


def _renamed(call: Call, same: dict[Register, Register]) -> Call:
    def rename(tree: Any) -> Any:
        if isinstance(tree, Register):
            return same.get(tree, tree)
        return type(tree)(map(rename, tree)) if isinstance(tree, (list, tuple)) else tree

    kwargs = {name: rename(value) for name, value in call.kwargs.items()}
    return Call(call.op, rename(call.args), kwargs, call.outs, call.view)


def _used(calls: list[Call], recording: Recording) -> list[Call]:
    """The calls that the logits or an attention call need."""
    wanted, kept = {recording.logits}, []
    for call in reversed(calls):
        if call.op == "attention" or wanted & set(call.outs):
            wanted |= set(call.registers)
            kept.append(call)
    return kept[::-1]


class _Finder:
    """Looks at a call and those that made its arguments."""

    def __init__(self, recording: Recording, calls: list[Call]) -> None:
        self.samples, self.constants = recording.samples, recording.constants
        self.makers = {out: call for call in calls for out in call.outs}
        self.uses = Counter(register for call in calls for register in call.registers)

    def replaced(self, call: Call) -> Call:
        """The native op that computes what ``call`` gives, or the call itself."""
        patterns: tuple[Callable[[Call], tuple[str, tuple[Any, ...]] | None], ...] = (
            self._norm, self._rotate, self._gate, self._add,
        )  # fmt: skip
        for pattern in patterns:
            match = pattern(call)
            if match is not None:
                return Call(match[0], match[1], {}, call.outs)
        return call

    def _sample(self, register: Register) -> Tensor:
        return self.samples[register.number]

    def _made(self, register: Any, op: Any) -> Call | None:
        """The call of ``op`` that made the register."""
        call = self.makers.get(register) if isinstance(register, Register) else None
        return call if call is not None and call.op is op else None

    def _pair(self, call: Call, op: Any) -> Iterator[tuple[Register, Register]]:
        """Both orders of the two tensors of a sum or product."""
        if call.op is op and len(call.args) == 2 and not call.kwargs:
            a, b = call.args
            if isinstance(a, Register) and isinstance(b, Register):
                yield a, b
                yield b, a

    def _norm(self, call: Call) -> tuple[str, tuple[Any, ...]] | None:
        """weight * (x / sqrt(mean(x^2) + eps)), computed in float32 and rounded before the weight."""
        for weight, rounded in self._pair(call, aten.mul.Tensor):
            if weight not in self.constants or self._sample(weight).ndim != 1:
                continue
            back = self._made(rounded, aten.to.dtype)
            product = self.makers.get(back.args[0] if back else rounded)
            if product is None:
                continue
            for wide, inverse in self._pair(product, aten.mul.Tensor):
                root = self._made(inverse, aten.rsqrt.default)
                total = self._made(root.args[0], aten.add.Tensor) if root else None
                mean = self._made(total.args[0], aten.mean.dim) if total else None
                power = self._made(mean.args[0], aten.pow.Tensor_Scalar) if mean else None
                if total is None or mean is None or power is None or power.args != (wide, 2):
                    continue
                widened = self._made(wide, aten.to.dtype)
                x, eps = widened.args[0] if widened else wide, total.args[1]
                kinds = {self._sample(tensor).dtype for tensor in (x, weight, call.outs[0], rounded)}
                wide_enough = self._sample(wide).dtype == torch.float32 and mean.args[1:] == ([-1], True)
                exact = wide_enough and lanes_of_sums(self._sample(x).shape[-1]) is not None
                if len(kinds) == 1 and kinds <= set(_FLOATS) and exact and isinstance(eps, float):
                    return NORM, (x, weight, eps)
        return None

    def _rotate(self, call: Call) -> tuple[str, tuple[Any, ...]] | None:
        """x * cos + (-x2, x1) * sin for x [1,H,T,D] = (x1, x2) and cos, sin [1,1,T,D]."""
        for first, second in self._pair(call, aten.add.Tensor):
            straight, turned = self._made(first, aten.mul.Tensor), self._made(second, aten.mul.Tensor)
            if straight is None or turned is None:
                continue
            for x, cos in self._pair(straight, aten.mul.Tensor):
                for halves, sin in self._pair(turned, aten.mul.Tensor):
                    if self._is_turned(halves, x) and self._are_angles(x, cos, sin):
                        return ROTATE, (x, cos, sin)
        return None

    def _is_turned(self, halves: Register, x: Register) -> bool:
        cat = self._made(halves, aten.cat.default)
        if cat is None or cat.args[1:] not in ((-1,), (3,)) or len(cat.args[0]) != 2 or self._sample(x).ndim != 4:
            return False
        minus, plain = cat.args[0]
        negative = self._made(minus, aten.neg.default)
        upper = self._made(negative.args[0], aten.slice.Tensor) if negative else None
        lower = self._made(plain, aten.slice.Tensor)
        D = self._sample(x).shape[-1]
        return (
            D % 2 == 0
            and upper is not None
            and lower is not None
            and upper.args[:1] == lower.args[:1] == (x,)
            and upper.args[1] in (3, -1)
            and lower.args[1:] in ((3, 0, D // 2), (-1, 0, D // 2))
            and upper.args[2] == D // 2
            and upper.args[3] >= D
        )

    def _are_angles(self, x: Register, cos: Register, sin: Register) -> bool:
        _, _, T, D = self._sample(x).shape
        same = {self._sample(tensor).dtype for tensor in (x, cos, sin)}
        shapes = {tuple(self._sample(tensor).shape) for tensor in (cos, sin)}
        return len(same) == 1 and same <= set(_FLOATS) and shapes == {(1, 1, T, D)}

    def _gate(self, call: Call) -> tuple[str, tuple[Any, ...]] | None:
        """f(gate) * up, f a function of 16-bit numbers."""
        for active, up in self._pair(call, aten.mul.Tensor):
            activation = self.makers.get(active)
            if activation is None or activation.op not in _ACTIVATIONS or self.uses[active] != 1:
                continue
            gate = activation.args[0]
            tensors = [self._sample(tensor) for tensor in (gate, up, active, call.outs[0])]
            kinds = {(tuple(tensor.shape), tensor.dtype) for tensor in tensors}
            if len(kinds) == 1 and tensors[0].dtype in (torch.bfloat16, torch.float16):
                return GATE, (gate, up, activation)
        return None

    def _add(self, call: Call) -> tuple[str, tuple[Any, ...]] | None:
        """a + b of one shape and dtype."""
        for a, b in self._pair(call, aten.add.Tensor):
            tensors = [self._sample(tensor) for tensor in (a, b, call.outs[0])]
            kinds = {(tuple(tensor.shape), tensor.dtype) for tensor in tensors}
            if len(kinds) == 1 and tensors[0].dtype in _FLOATS and all(each.is_contiguous() for each in tensors):
                return ADD, (a, b)
        return None
