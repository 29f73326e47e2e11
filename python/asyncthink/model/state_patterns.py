"""Recurrent states in the calls of a recorded pass, and what native ops compute in their slots.

A state is loaded from the slots of the rows before the pass reads it, and stored behind what writes it. Where one
native op computes what becomes of a state, it works in the slots, and nothing is loaded.

Letters: B rows, H heads, K and V dims of keys and values.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from asyncthink.model.call_graph import ACTIVATIONS, CallGraph, aten, owners
from asyncthink.model.recorder import LOAD, STORE, Call, Recording, Register
from asyncthink.model.recurrent import StateKey
from asyncthink_kernels.ops.step_program import conv_is_fused, plain_columns

DELTA_RULE, CONV_UPDATE = "delta rule", "conv update"
"""(key, decay, q, k, v, beta, plain) -> out, and (key, x, weight, bias, fused, activation or None) -> y."""


def with_states(calls: Sequence[Call], recording: Recording) -> list[Call]:
    """The calls, each state loaded before its first use, and stored after the last call that has to do with it."""
    memory = owners(calls)
    touched = [{memory.get(register, register) for register in (*call.registers, *call.outs)} for call in calls]
    written = {memory.get(register, register) for call in calls for register in call.written}
    before: dict[int, list[Call]] = {}
    after: dict[int, list[Call]] = {}
    for key, state in recording.states.items():
        first = next((number for number, registers in enumerate(touched) if state in registers), None)
        if first is not None:
            before.setdefault(first, []).append(Call(LOAD, (key,), {}, (state,)))
    for key, state in recording.states_behind.items():
        if state in recording.states.values() and state not in written and recording.states.get(key) == state:
            continue  # it stays as it was
        last = max(n for n, registers in enumerate(touched) if memory.get(state, state) in registers)
        after.setdefault(last, []).append(Call(STORE, (key, state), {}, ()))
    around = (([*before.get(n, ()), call, *after.get(n, ())]) for n, call in enumerate(calls))
    return [call for part in around for call in part]


def in_slots(calls: Sequence[Call], graph: CallGraph) -> list[Call]:
    """What native ops compute in the slots of states, among the calls, in the place of the calls that did."""
    matches: dict[StateKey, Call] = {}  # the last of a state: a convolution with its activation, not without
    for call in calls:
        for op, pattern in ((DELTA_RULE, _delta_rule), (CONV_UPDATE, _conv_update)):
            match = pattern(call, graph) if call.outs else None
            if match is not None:
                matches[match[0]] = Call(op, match, {}, call.outs)
    by_result = {match.outs[0]: match for match in matches.values()}
    replaced = [by_result.get(call.outs[0], call) if call.outs else call for call in calls]
    return [call for call in replaced if call.op is not STORE or call.args[0] not in matches]


def _delta_rule(call: Call, graph: CallGraph) -> tuple[Any, ...] | None:
    """(key, decay, q, k, v, beta, plain) of out = q M, where M = S * decay + k (v - k (S * decay)) * beta is kept."""
    for updated, query in _row_sum(call, graph):
        for decayed, outer in graph.pair(graph.makers.get(updated), aten.add.Tensor):
            for state, decay in graph.pair(graph.makers.get(decayed), aten.mul.Tensor):
                for column, row in graph.pair(graph.makers.get(outer), aten.mul.Tensor):
                    match = _delta(row, column, decayed, graph)
                    kept = _kept(state, graph)
                    once = graph.uses[decayed] == 2 and graph.uses[updated] == 2 and graph.uses[outer] == 1
                    if match is None or kept is None or kept[1] != updated or not once:
                        continue
                    k, v, beta = match
                    tensors = (decay, query, k, v, beta)
                    plain = _plain(state, tensors, graph)
                    if plain is not None and not any(map(graph.is_written, tensors)):
                        return kept[0], *tensors, plain
    return None


def _row_sum(call: Call | None, graph: CallGraph) -> Iterator[tuple[Register, Register]]:
    """(M [B,H,K,V], x [B,H,K]) of sum_i M_i x_i."""
    if call is not None and call.op is aten.sum.dim_IntList and call.args[1:] == ([-2],) and not call.kwargs:
        for matrix, column in graph.pair(graph.makers.get(call.args[0]), aten.mul.Tensor):
            x = _unsqueezed(column, -1, graph)
            if x is not None and graph.uses[call.args[0]] == 1:
                yield matrix, x


def _delta(
    row: Register, column: Register, decayed: Register, graph: CallGraph
) -> tuple[Register, Register, Register] | None:
    """(k, v, beta) of the outer product of k and (v - k M) * beta."""
    delta, k = _unsqueezed(row, -2, graph), _unsqueezed(column, -1, graph)
    if delta is None or k is None:
        return None
    for error, beta in graph.pair(graph.makers.get(delta), aten.mul.Tensor):
        difference = graph.made(error, aten.sub.Tensor)
        if difference is None or len(difference.args) != 2 or difference.kwargs:
            continue
        v, guess = difference.args
        if (decayed, k) in _row_sum(graph.makers.get(guess), graph):
            return k, v, beta
    return None


def _unsqueezed(register: Register, axis: int, graph: CallGraph) -> Register | None:
    call = graph.made(register, aten.unsqueeze.default)
    if call is None:
        return None
    x: Register = call.args[0]
    return x if call.args[1] % graph.sample(register).ndim == axis % graph.sample(register).ndim else None


def _kept(state: Register, graph: CallGraph) -> tuple[StateKey, Register] | None:
    """(key, what is kept in its place) of a state that is read once."""
    load = graph.made(state, LOAD)
    key: StateKey | None = load.args[0] if load is not None else None
    if key is None or key not in graph.stored:
        return None
    kept = graph.stored[key]
    if kept != state:
        return (key, kept) if graph.uses[state] == 1 else None
    writes = graph.writers.get(state, [])
    copied = len(writes) == 1 and writes[0].op is aten.copy_.default and writes[0].args[0] == state
    return (key, writes[0].args[1]) if copied and graph.uses[state] == 3 else None


def _plain(state: Register, tensors: Sequence[Register], graph: CallGraph) -> int | None:
    """What ``plain_columns`` finds, where shapes and dtypes are those of the rule of one token."""
    sample = graph.sample(state)
    if sample.ndim != 4 or any(graph.sample(each).dtype != torch.float32 for each in (state, *tensors)):
        return None
    B, H, K, V = sample.shape
    expected = [((B, H, 1, 1), (B, H, K, 1)), ((B, H, K),), ((B, H, K),), ((B, H, V),), ((B, H, 1),)]
    if any(tuple(graph.sample(each).shape) not in shapes for each, shapes in zip(tensors, expected, strict=True)):
        return None
    return plain_columns(B, H, K, V, torch.get_num_threads())


def _conv_update(call: Call, graph: CallGraph) -> tuple[Any, ...] | None:
    """(key, x, weight, bias, fused, activation) of the last of the convolutions over a state and a new token."""
    activation = call if call.op in ACTIVATIONS else None
    last = graph.made(call.args[0], aten.slice.Tensor) if activation else call
    if last is None or last.op is not aten.slice.Tensor or last.args[1:3] not in ((2, -1), (-1, -1)):
        return None
    conv = graph.made(last.args[0], aten.conv1d.default)
    cat = graph.made(conv.args[0], aten.cat.default) if conv else None
    if conv is None or cat is None or len(cat.args[0]) != 2 or cat.args[1:] not in ((-1,), (2,)):
        return None
    (state, x), (window, weight, bias, *options) = cat.args[0], conv.args
    moved = _kept(state, graph)
    if moved is None or not _is_end(moved[1], window, graph):
        return None
    B, C, K = graph.sample(state).shape
    tensors = [x, weight, *([bias] if bias is not None else [])]
    shapes = [tuple(graph.sample(tensor).shape) for tensor in tensors]
    dtypes = {graph.sample(tensor).dtype for tensor in (state, *tensors, call.outs[0])}
    usual = options == [[1], [0], [1], C] and shapes[:2] == [(B, C, 1), (C, 1, K)]
    once = (graph.uses[window], graph.uses[conv.outs[0]]) == (2, 1)
    if not usual or not once or len(dtypes) != 1 or any(map(graph.is_written, tensors)):
        return None
    (dtype,) = dtypes
    if activation is not None and (dtype == torch.float32 or graph.uses[last.outs[0]] != 1):
        return None
    fused = conv_is_fused(B, C, K, dtype, bias is not None, torch.get_num_threads())
    return None if fused is None else (moved[0], x, weight, bias, fused, activation)


def _is_end(register: Register, window: Register, graph: CallGraph) -> bool:
    """Whether it is the window [B,C,K+1] but for its first token, and used for nothing else."""
    end = graph.made(register, aten.slice.Tensor)
    K = graph.sample(window).shape[-1] - 1
    return (
        end is not None
        and end.args[0] == window
        and end.args[1:3] in ((2, -K), (-1, -K))
        and end.args[3] > K
        and graph.uses[register] == 1
    )
