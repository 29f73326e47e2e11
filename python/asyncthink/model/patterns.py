"""Calls of a recorded pass that one native op computes: :func:`fused`.

A pattern is found by what computes what, not by names of models: the norm of squares, the rotation by halves, the gate
of an MLP. Its native op rounds as torch does, call by call, so results have the same bits; the recorded step is
compared with the model's own before it is used (:mod:`asyncthink.model.recorded`).

Letters: T rows, H heads, D head dim, I features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from asyncthink.model.call_graph import ACTIVATIONS, ROUNDINGS, CallGraph, aten, owners
from asyncthink.model.recorder import ATTENTION, STORE, Call, Recording, Register, registers_in
from asyncthink.model.state_patterns import CONV_UPDATE, DELTA_RULE, in_slots, with_states
from asyncthink_kernels.ops.step_program import lanes_of_sums

NORM, L2_NORM, ROTATE, GATE, GATE_WIDE, ADD = "norm", "l2 norm", "rotate", "gate", "gate wide", "add"
"""(x, weight, eps, wide, offset), (x, eps, divisor), (x, cos, sin), (gate, up, the call between them),
(x, gate, the call) and (a, b)."""

_Match = tuple[str, tuple[Any, ...]] | None

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_VECTORS = 64  # torch computes whole vectors of so many numbers in one way, and what is left in another


def fused(recording: Recording) -> list[Call]:
    """The calls of a recording with equal views made once, native ops in the place of patterns, and nothing unused."""
    calls = with_states(_equal_views_once(recording), recording)
    finder = _Finder(recording, calls)
    return _used(in_slots([finder.replaced(call) for call in calls], finder), recording)


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
    recording.states_behind = {key: same.get(state, state) for key, state in recording.states_behind.items()}
    return calls


def _renamed(call: Call, same: dict[Register, Register]) -> Call:
    def rename(tree: Any) -> Any:
        if isinstance(tree, Register):
            return same.get(tree, tree)
        return type(tree)(map(rename, tree)) if isinstance(tree, (list, tuple)) else tree

    kwargs = {name: rename(value) for name, value in call.kwargs.items()}
    return Call(call.op, rename(call.args), kwargs, call.outs, call.view, rename(call.written))


def _used(calls: list[Call], recording: Recording) -> list[Call]:
    """The calls that the logits, an attention call or a state need."""
    memory = owners(calls)
    wanted, kept = {recording.logits}, []
    wanted_memory = {memory.get(recording.logits, recording.logits)}
    for call in reversed(calls):
        writes = {memory.get(register, register) for register in call.written}
        if call.op in (ATTENTION, STORE, DELTA_RULE, CONV_UPDATE) or wanted & set(call.outs) or wanted_memory & writes:
            wanted |= set(call.registers)
            wanted_memory |= {memory.get(register, register) for register in call.registers}
            kept.append(call)
    return kept[::-1]


class _Finder(CallGraph):
    """Finds the native op that computes what a call gives."""

    def replaced(self, call: Call) -> Call:
        """The native op that computes what ``call`` gives, or the call itself."""
        patterns: tuple[Callable[[Call], _Match], ...] = (
            self._norm, self._wide_norm, self._l2_norm, self._rotate, self._gate, self._wide_gate, self._add,
        )  # fmt: skip
        for pattern in patterns:
            match = pattern(call)
            if match is not None and not any(map(self.is_written, registers_in(match[1]))):
                return Call(match[0], match[1], {}, call.outs)
        return call

    def _norm(self, call: Call) -> _Match:
        """weight * (x / sqrt(mean(x^2) + eps)), computed in float32 and rounded before the weight."""
        for weight, rounded in self.pair(call, aten.mul.Tensor):
            back = self.made(rounded, aten.to.dtype)
            normed = self._normed(back.args[0] if back else rounded)
            if normed is not None and self._is_weight(weight, normed[0], call.outs[0], rounded):
                return NORM, (normed[0], weight, normed[1], False, 0.0)
        return None

    def _wide_norm(self, call: Call) -> _Match:
        """(weight + offset) * (x / sqrt(mean(x^2) + eps)), computed in float32 and rounded at the end."""
        product = self.makers.get(call.args[0]) if call.op in ROUNDINGS else call
        for scale, wide in self.pair(product, aten.mul.Tensor):
            normed, total = self._normed(wide), self.made(scale, aten.add.Tensor)
            weight, offset = total.args[:2] if total else (scale, 0.0)
            widened = self.made(weight, aten.to.dtype)
            weight = widened.args[0] if widened else weight
            if normed is None or not isinstance(offset, float) or self.sample(scale).dtype not in _FLOATS:
                continue
            exact = self.sample(scale).dtype == torch.float32 or total is None
            if exact and self._is_weight(weight, normed[0], call.outs[0]):
                return NORM, (normed[0], weight, normed[1], True, offset)
        return None

    def _is_weight(self, weight: Register, *like: Register) -> bool:
        """Whether it is a parameter of one dimension, of the dtype that the others have."""
        kinds = {self.sample(tensor).dtype for tensor in (weight, *like)}
        return weight in self.constants and self.sample(weight).ndim == 1 and len(kinds) == 1 and kinds <= set(_FLOATS)

    def _normed(self, register: Register) -> tuple[Register, float] | None:
        """(x, eps) of x / sqrt(mean(x^2) + eps) in float32."""
        for wide, inverse in self.pair(self.makers.get(register), aten.mul.Tensor):
            root = self.made(inverse, aten.rsqrt.default)
            total = self.made(root.args[0], aten.add.Tensor) if root else None
            mean = self.made(total.args[0], aten.mean.dim) if total else None
            power = self.made(mean.args[0], aten.pow.Tensor_Scalar) if mean else None
            if total is None or mean is None or power is None or power.args != (wide, 2):
                continue
            widened = self.made(wide, aten.to.dtype)
            x, eps = widened.args[0] if widened else wide, total.args[1]
            wide_enough = self.sample(wide).dtype == torch.float32 and mean.args[1:] == ([-1], True)
            wide_enough = wide_enough and self._has_rows(x)
            if wide_enough and lanes_of_sums(self.sample(x).shape[-1]) is not None and isinstance(eps, float):
                return x, eps
        return None

    def _l2_norm(self, call: Call) -> _Match:
        """x / sqrt(sum(x^2) + eps), computed in float32, or that by a number."""
        divided = call.op is aten.div.Tensor and len(call.args) == 2 and isinstance(call.args[1], float)
        product = self.makers.get(call.args[0]) if divided else call
        for wide, inverse in self.pair(product, aten.mul.Tensor):
            root = self.made(inverse, aten.rsqrt.default)
            total = self.made(root.args[0], aten.add.Tensor) if root else None
            squares = self.made(total.args[0], aten.sum.dim_IntList) if total else None
            power = self.made(squares.args[0], aten.mul.Tensor) if squares else None
            if total is None or squares is None or power is None or power.args != (wide, wide):
                continue
            widened = self.made(wide, aten.to.dtype)
            x, eps = widened.args[0] if widened else wide, total.args[1]
            kinds = {self.sample(tensor).dtype for tensor in (wide, call.outs[0])}
            exact = lanes_of_sums(self.sample(x).shape[-1]) is not None and isinstance(eps, float)
            plain = squares.args[1:] == ([-1], True) and self._has_rows(x)
            if kinds == {torch.float32} and exact and plain:
                return L2_NORM, (x, eps, call.args[1] if divided else 1.0)
        return None

    def _has_rows(self, register: Register) -> bool:
        """Whether its last dimension is a run of floats, and the others are tokens, or tokens and heads."""
        sample = self.sample(register)
        one = sample.is_contiguous() or sum(size > 1 for size in sample.shape[:-1]) <= 1
        run = sample.dtype in _FLOATS and (sample.stride(-1) == 1 or sample.shape[-1] == 1)
        return run and (one or (sample.ndim == 4 and 1 in sample.shape[:3]))

    def _rotate(self, call: Call) -> _Match:
        """x * cos + (-x2, x1) * sin for x [1,H,T,D] = (x1, x2) and cos, sin [1,1,T,D], or one token each of T rows."""
        for first, second in self.pair(call, aten.add.Tensor):
            straight, turned = self.made(first, aten.mul.Tensor), self.made(second, aten.mul.Tensor)
            if straight is None or turned is None:
                continue
            for x, cos in self.pair(straight, aten.mul.Tensor):
                for halves, sin in self.pair(turned, aten.mul.Tensor):
                    if self._is_turned(halves, x) and self._are_angles(x, cos, sin):
                        return ROTATE, (x, cos, sin)
        return None

    def _is_turned(self, halves: Register, x: Register) -> bool:
        cat = self.made(halves, aten.cat.default)
        if cat is None or cat.args[1:] not in ((-1,), (3,)) or len(cat.args[0]) != 2 or self.sample(x).ndim != 4:
            return False
        minus, plain = cat.args[0]
        negative = self.made(minus, aten.neg.default)
        upper = self.made(negative.args[0], aten.slice.Tensor) if negative else None
        lower = self.made(plain, aten.slice.Tensor)
        D = self.sample(x).shape[-1]
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
        B, _, n, D = self.sample(x).shape
        same = {self.sample(tensor).dtype for tensor in (x, cos, sin)}
        shapes = {tuple(self.sample(tensor).shape) for tensor in (cos, sin)}
        return len(same) == 1 and same <= set(_FLOATS) and shapes == {(B, 1, n, D)} and 1 in (B, n)

    def _gate(self, call: Call) -> _Match:
        """f(gate) * up, f a function of 16-bit numbers."""
        for active, up in self.pair(call, aten.mul.Tensor):
            activation = self.makers.get(active)
            if activation is None or activation.op not in ACTIVATIONS or self.uses[active] != 1:
                continue
            gate = activation.args[0]
            tensors = [self.sample(tensor) for tensor in (gate, up, active, call.outs[0])]
            kinds = {(tuple(tensor.shape), tensor.dtype) for tensor in tensors}
            rows = all(map(self._has_rows, (gate, up, call.outs[0])))
            if len(kinds) == 1 and tensors[0].dtype in (torch.bfloat16, torch.float16) and rows:
                return GATE, (gate, up, activation)
        return None

    def _wide_gate(self, call: Call) -> _Match:
        """x * f(gate), both widened to float32 and rounded at the end."""
        product = self.makers.get(call.args[0]) if call.op in ROUNDINGS else None
        for x, active in self.pair(product, aten.mul.Tensor):
            activation = self.made(active, *ACTIVATIONS)
            widened = self.made(activation.args[0], aten.to.dtype) if activation else None
            if activation is None or widened is None or self.sample(active).dtype != torch.float32:
                continue
            gate = widened.args[0]
            tensors = [self.sample(tensor) for tensor in (x, gate, call.outs[0])]
            kinds = {(tuple(tensor.shape), tensor.dtype) for tensor in tensors}
            whole = tensors[0].numel() % _VECTORS == 0 and all(tensor.is_contiguous() for tensor in tensors)
            if len(kinds) == 1 and tensors[0].dtype in (torch.bfloat16, torch.float16) and whole:
                return GATE_WIDE, (x, gate, activation)
        return None

    def _add(self, call: Call) -> _Match:
        """a + b of one shape and dtype."""
        for a, b in self.pair(call, aten.add.Tensor):
            tensors = [self.sample(tensor) for tensor in (a, b, call.outs[0])]
            kinds = {(tuple(tensor.shape), tensor.dtype) for tensor in tensors}
            if len(kinds) == 1 and tensors[0].dtype in _FLOATS and all(each.is_contiguous() for each in tensors):
                return ADD, (a, b)
        return None
