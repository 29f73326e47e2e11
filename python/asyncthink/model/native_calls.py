"""The native op of each call that has one, on the tensors of a program: :data:`EMITTERS`.

Letters: T rows of a step, B rows with states in S slots, H heads, D head dim, I features.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from asyncthink.model.patterns import ADD, GATE, GATE_WIDE, L2_NORM, NORM, ROTATE
from asyncthink.model.recorder import ATTENTION, LOAD, STORE, Call, Register
from asyncthink.model.recurrent import StateKey
from asyncthink.model.state_patterns import CONV_UPDATE, DELTA_RULE
from asyncthink_kernels.ops.step_program import NativeProgram, lanes_of_sums

PACKED = torch.ops.asyncthink.packed_linear.default
QUANTIZED = torch.ops.asyncthink.quantized_linear.default


class NativeCalls:
    """Appends native ops to programs. ``tensors`` are those of the registers, ``caches`` [L] K and V of layers.

    ``states``: the slots [S, ...] of each recurrent state.
    """

    def __init__(
        self,
        tensors: Mapping[Register, Tensor],
        caches: Sequence[tuple[Tensor, Tensor]],
        states: Mapping[StateKey, Tensor],
    ) -> None:
        self.tensors, self.caches, self.states = tensors, caches, states

    def tensor(self, tree: Any) -> Any:
        """The tensors in the place of the registers of nested lists and tuples."""
        if isinstance(tree, Register):
            return self.tensors[tree]
        return type(tree)(map(self.tensor, tree)) if isinstance(tree, (list, tuple)) else tree

    def norm(self, program: NativeProgram, call: Call) -> None:
        x, weight, eps, wide, offset = self.tensor(call.args)
        lanes = lanes_of_sums(x.shape[-1])
        assert lanes is not None  # else it is no pattern
        y = _as_heads(self.tensors[call.outs[0]])
        program.norm(_as_heads(x), weight, y, eps, lanes, wide=wide, offset=offset)

    def l2_norm(self, program: NativeProgram, call: Call) -> None:
        x, eps, divisor = self.tensor(call.args)
        lanes = lanes_of_sums(x.shape[-1])
        assert lanes is not None  # else it is no pattern
        program.l2_norm(_as_heads(x), _as_heads(self.tensors[call.outs[0]]), eps, divisor, lanes)

    def rotate(self, program: NativeProgram, call: Call) -> None:
        x, cos, sin = self.tensor(call.args)
        y = self.tensors[call.outs[0]]
        program.rotate(_as_tokens(x), _as_tokens(cos)[:, 0], _as_tokens(sin)[:, 0], _as_tokens(y))

    def gate(self, program: NativeProgram, call: Call) -> None:
        gate, up, activation = call.args
        y = self.tensors[call.outs[0]]
        table = _table(activation.op, y.dtype, activation.args[1:], tuple(activation.kwargs.items()))
        program.gate(_as_rows(self.tensors[gate]), _as_rows(self.tensors[up]), table, _as_rows(y))

    def gate_wide(self, program: NativeProgram, call: Call) -> None:
        x, gate, activation = call.args
        y, options = self.tensors[call.outs[0]], (activation.args[1:], tuple(activation.kwargs.items()))
        table = _table(activation.op, y.dtype, *options, wide=True)
        program.gate_wide(_as_rows(self.tensors[x]), _as_rows(self.tensors[gate]), table, _as_rows(y))

    def add(self, program: NativeProgram, call: Call) -> None:
        a, b = self.tensor(call.args)
        program.add(_as_rows(a), _as_rows(b), _as_rows(self.tensors[call.outs[0]]))

    def attention(self, program: NativeProgram, call: Call) -> None:
        q, k, v, layer = self.tensor(call.args)
        options = {name: self.tensor(value) for name, value in call.kwargs.items()}
        sinks = options["s_aux"]
        k_cache, v_cache = self.caches[layer]
        program.attention(
            _as_tokens(q),
            _as_tokens(k),
            _as_tokens(v),
            k_cache,
            v_cache,
            self.tensors[call.outs[0]].flatten(0, 1),
            scale=options["scaling"],
            window=options["sliding_window"],
            softcap=options["softcap"],
            sinks=None if sinks is None else sinks.float(),
            layer=layer,
        )

    def packed(self, program: NativeProgram, call: Call) -> None:
        x, parts = call.args
        program.linears(
            self.tensors[x],
            [(*self.tensor(part[:2]), self.tensors[out]) for part, out in zip(parts, call.outs, strict=True)],
        )

    def load(self, program: NativeProgram, call: Call) -> None:
        program.load_states(self.states[call.args[0]].flatten(1), self.tensors[call.outs[0]].flatten(1))

    def store(self, program: NativeProgram, call: Call) -> None:
        states, x = self.states[call.args[0]], self.tensors[call.args[1]]
        if not x.is_contiguous() or x.dtype != states.dtype:
            raise ValueError(f"a state {x.dtype} with strides {x.stride()} is not stored as it is")
        program.store_states(states.flatten(1), x.flatten(1))

    def delta_rule(self, program: NativeProgram, call: Call) -> None:
        key, *registers, plain = call.args
        decay, q, k, v, beta = self.tensor(registers)
        decay = decay[..., 0].expand(*k.shape)
        program.delta_rule(self.states[key], decay, q, k, v, beta[..., 0], self.tensors[call.outs[0]], plain)

    def quantized(self, program: NativeProgram, call: Call) -> None:
        x, parts = call.args
        program.quantized_linears(
            self.tensors[x],
            [(*self.tensor(part[:4]), self.tensors[out]) for part, out in zip(parts, call.outs, strict=True)],
        )

    def conv_update(self, program: NativeProgram, call: Call) -> None:
        key, x, weight, bias, fused, activation = call.args
        y = self.tensors[call.outs[0]]
        table = activation and _table(activation.op, y.dtype, activation.args[1:], tuple(activation.kwargs.items()))
        program.conv_update(
            self.states[key],
            self.tensors[x][..., 0],
            self.tensors[weight][:, 0],
            None if bias is None else self.tensors[bias],
            table,
            y[..., 0],
            fused=fused,
        )


EMITTERS: Mapping[Any, Callable[[NativeCalls, NativeProgram, Call], None]] = {
    NORM: NativeCalls.norm,
    L2_NORM: NativeCalls.l2_norm,
    ROTATE: NativeCalls.rotate,
    GATE: NativeCalls.gate,
    GATE_WIDE: NativeCalls.gate_wide,
    ADD: NativeCalls.add,
    ATTENTION: NativeCalls.attention,
    PACKED: NativeCalls.packed,
    QUANTIZED: NativeCalls.quantized,
    LOAD: NativeCalls.load,
    STORE: NativeCalls.store,
    DELTA_RULE: NativeCalls.delta_rule,
    CONV_UPDATE: NativeCalls.conv_update,
}


def _as_rows(x: Tensor) -> Tensor:
    """[..., I] -> [T, I]."""
    return x.view(-1, x.shape[-1])


def _as_heads(x: Tensor) -> Tensor:
    """[1, T, H, I], [T, 1, H, I] or [T, H, 1, I] -> [T, H, I]; up to three dimensions: rows of one head."""
    if x.ndim != 4:
        return _as_rows(x).unsqueeze(1)
    return x[:, :, 0] if x.shape[2] == 1 else x.flatten(0, 1)


def _as_tokens(x: Tensor) -> Tensor:
    """[1, H, T, D], or [T, H, 1, D] of rows with one token each -> [T, H, D]."""
    return x[0].transpose(0, 1) if x.shape[0] == 1 else x[:, :, 0]


@functools.cache
def _table(
    op: Any, dtype: torch.dtype, args: tuple[Any, ...], kwargs: tuple[tuple[str, Any], ...], *, wide: bool = False
) -> Tensor:
    """What ``op`` makes of each of the 65,536 numbers of a 16-bit dtype, by their bits; ``wide``: in float32."""
    numbers = torch.arange(1 << 16, dtype=torch.int32, device="cpu").to(torch.int16).view(dtype)
    table: Tensor = op(numbers.float() if wide else numbers, *args, **dict(kwargs))
    return table
