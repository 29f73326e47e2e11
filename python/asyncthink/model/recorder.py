"""One forward pass as a list of calls of torch's ops and ours: :func:`record`.

What a transformers model does in Python depends on its configuration and on the sizes of a step, not on numbers. So a
pass of the same sizes is the same list of calls on other numbers; calls that depend on numbers (``nonzero``, ``item``)
are refused, and so are calls that write into tensors, unless the pass made them or they are states lent to it.

Letters: T rows of a step, N rows whose logits are wanted, Hq query heads, H kv heads, D and Dv head dims, V vocabulary,
B rows of a pass with states, n tokens of each.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from asyncthink.model.attention import Step
from asyncthink.model.hook import HookedModel
from asyncthink.model.linear_copies import watched_ops
from asyncthink.model.recurrent import StateKey, states

ATTENTION = "attention"
"""Stands for append_kv and tree_attention of a layer: (q, k, v, layer) and the options of the layer -> out."""

LOAD, STORE = "load", "store"
"""Stand for states from and to the slots of the rows: (key) -> state and (key, state)."""

_REFUSED = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape, torch.Tag.nondeterministic_seeded}
_SMALL = 64  # numbers of a tensor that a pass makes from Python


class NotRecordableError(RuntimeError):
    """The pass cannot be recorded; the message says why."""


@dataclass(frozen=True, slots=True)
class Register:
    """A tensor of the pass, by its number."""

    number: int


@dataclass(frozen=True)
class Call:
    """One call: ``op`` is torch's, or a name of ours. Tensors in ``args`` and ``kwargs`` are registers.

    ``written`` are those of its arguments that it writes into; such a call has no ``outs``.
    """

    op: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outs: tuple[Register, ...]
    view: bool = False  # the output lies in memory of an argument
    written: tuple[Register, ...] = ()

    @property
    def registers(self) -> list[Register]:
        """Those that it reads."""
        return registers_in((self.args, dict(self.kwargs)))


@dataclass
class Recording:
    """The calls of a pass, what each register was like, and which registers are what."""

    calls: list[Call] = field(default_factory=list)
    samples: list[Tensor] = field(default_factory=list)  # by number
    constants: dict[Register, Tensor] = field(default_factory=dict)
    inputs: dict[str, Register] = field(default_factory=dict)
    logits: Register = Register(-1)
    states: dict[StateKey, Register] = field(default_factory=dict)  # as they are lent
    states_behind: dict[StateKey, Register] = field(default_factory=dict)  # where they lie after the pass

    def same_as(self, other: Recording) -> bool:
        """Whether another pass of the same sizes made the same calls."""
        mine, theirs = self.constants, other.constants
        return (
            self.calls == other.calls
            and (self.inputs, self.logits) == (other.inputs, other.logits)
            and (self.states, self.states_behind) == (other.states, other.states_behind)
            and mine.keys() == theirs.keys()
            and all(mine[key] is theirs[key] or torch.equal(mine[key], theirs[key]) for key in mine)
        )


def registers_in(tree: Any) -> list[Register]:
    """The registers in nested lists, tuples and dicts."""
    if isinstance(tree, Register):
        return [tree]
    if isinstance(tree, dict):
        tree = tree.values()
    elif not isinstance(tree, (list, tuple)):
        return []
    return [register for branch in tree for register in registers_in(branch)]


def record(hooked: HookedModel, step: Step, rows: Tensor, known: Iterable[Tensor]) -> tuple[Tensor, Recording]:
    """Run ``step`` as ever -> (logits [N,V] of rows [N], the recording). ``known`` tensors may be read.

    NotRecordableError with nothing lost: the step may be run again.
    """
    recorder = _Recorder(hooked, step, known)
    with recorder.takes_the_pass():
        logits = hooked.run(recorder, step.tokens, step.positions, rows)
    return logits, recorder.recording


def record_rows(
    hooked: HookedModel,
    step: Step,
    cache: Any,
    lent: Mapping[StateKey, Tensor],
    columns: Tensor,
    known: Iterable[Tensor],
) -> tuple[Tensor, Recording]:
    """As :func:`record`, for a pass of B rows with states: -> (logits [B,m,V] of columns [m], the recording).

    The rows have as many tokens of the step each. The states ``lent`` in the ``cache`` are written.
    """
    recorder = _Recorder(hooked, step, known)
    B = next(iter(lent.values())).shape[0]
    with recorder.takes_the_pass():
        recorder.lend(lent)
        logits = hooked.run_rows(recorder, cache, step.tokens.view(B, -1), step.positions.view(B, -1), columns)
        recorder.return_states(states(cache))
    return logits, recorder.recording


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _harmless(func: Any, args: tuple[Any, ...]) -> bool:
    """An index that names rows by their numbers (a mask gives as many rows as it has ones), or a dropout of nothing."""
    if func is torch.ops.aten.dropout.default:
        return not args[2]
    if func is not torch.ops.aten.index.Tensor:
        return False
    return all(index.dtype in (torch.int64, torch.int32) for index in args[1] if index is not None)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the calls of a pass, and takes its attention calls."""

    def __init__(self, hooked: HookedModel, step: Step, known: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.recording = Recording()
        self._hooked = hooked
        self._step = step
        self._known = {id(tensor): tensor for tensor in known}
        self._registers: dict[int, Register] = {}
        self._writable: set[int] = set()  # memory that the pass made, and that of states
        self._ours = False

    @contextmanager
    def takes_the_pass(self) -> Iterator[None]:
        """Passes of the model go through :meth:`run` within."""
        self._hooked.compiled = self.run
        try:
            yield
        finally:
            self._hooked.compiled = None

    def lend(self, lent: Mapping[StateKey, Tensor]) -> None:
        """These states are read and written by the pass."""
        self.recording.states = {key: self._new(tensor) for key, tensor in lent.items()}
        self._writable |= {_memory(tensor) for tensor in lent.values()}

    def return_states(self, behind: Mapping[StateKey, Tensor]) -> None:
        """These are the states after the pass."""
        self.recording.states_behind = {key: self._read(tensor) for key, tensor in behind.items()}

    def run(self, receiver: Any, **keywords: Any) -> Any:
        """The model's forward pass, recorded."""
        for name in ("input_ids", "position_ids", "logits_to_keep"):
            if name in keywords:
                self.recording.inputs[name] = self._new(keywords[name])
        with watched_ops(), self:
            output = self._hooked.model(**keywords)
        self.recording.logits = self._read(output.logits)
        return output

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, given: dict[str, Any]
    ) -> Tensor:
        """As :meth:`asyncthink.model.attention.Step.attend`."""
        tensors = tuple(map(self._read, (query, key, value)))
        options = {name: given.get(name) for name in ("scaling", "sliding_window", "softcap", "s_aux")}
        layer = self._step.attention.place(module, self._step.calls).layer
        self._ours = True
        try:
            out = self._step.attend(module, query, key, value, mask, given)
        finally:
            self._ours = False
        options = tree_map_only(Tensor, self._read, options)
        self._note(ATTENTION, (*tensors, layer), options, (out,), view=False)
        return out

    @property
    def calls(self) -> int:
        """Attention calls so far."""
        return self._step.calls

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._ours:
            return func(*args, **kwargs)
        if func._schema.is_mutable:
            return self._write(func, args, kwargs)
        if _REFUSED & set(func.tags) and not _harmless(func, args):
            raise NotRecordableError(f"what {func} gives depends on numbers")
        read_args, read_kwargs = tree_map_only(Tensor, self._read, (tuple(args), dict(kwargs)))
        result = func(*args, **kwargs)
        outs = result if isinstance(result, (tuple, list)) else (result,)
        if not all(isinstance(out, Tensor) for out in outs):
            raise NotRecordableError(f"{func} gives no tensor")
        given = [self.recording.samples[register.number] for register in registers_in((read_args, read_kwargs))]
        if len(outs) == 1 and any(outs[0] is tensor for tensor in given):
            return result  # nothing was done
        memory = {_memory(tensor) for tensor in given}
        shared = [_memory(out) in memory for out in outs if out.numel()]
        if any(shared) and not all(shared):
            raise NotRecordableError(f"{func} gives a view and a copy")
        self._note(func, read_args, read_kwargs, outs, view=any(shared))
        if not any(shared):
            self._writable |= {_memory(out) for out in outs if out.numel()}
        return result

    def _write(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call that writes into its arguments: into what the pass made, or into states lent to it."""
        given = {name.name: value for name, value in zip(func._schema.arguments, args, strict=False)} | kwargs
        targets = [given.get(each.name) for each in func._schema.arguments if each.is_write]
        if not all(isinstance(target, Tensor) for target in targets):
            raise NotRecordableError(f"{func} writes into something else than a tensor")
        if _REFUSED & set(func.tags):
            raise NotRecordableError(f"what {func} gives depends on numbers")
        if all(not target.numel() for target in targets):
            return func(*args, **kwargs)
        read_args, read_kwargs = tree_map_only(Tensor, self._read, (tuple(args), dict(kwargs)))
        if not all(_memory(target) in self._writable for target in targets):
            raise NotRecordableError(f"{func} writes into a tensor that the pass did not make")
        written = tuple(map(self._read, targets))
        self.recording.calls.append(Call(func, read_args, read_kwargs, (), written=written))
        return func(*args, **kwargs)

    def _note(self, op: Any, args: tuple[Any, ...], kwargs: dict[str, Any], outs: Any, view: bool) -> None:
        self.recording.calls.append(Call(op, args, kwargs, tuple(map(self._new, outs)), view))

    def _new(self, tensor: Tensor) -> Register:
        register = Register(len(self.recording.samples))
        self.recording.samples.append(tensor)  # it lives as long as its id is looked up
        self._registers[id(tensor)] = register
        return register

    def _read(self, tensor: Tensor) -> Register:
        register = self._registers.get(id(tensor))
        if register is None:
            if id(tensor) not in self._known and tensor.numel() > _SMALL:
                raise NotRecordableError(f"a tensor {list(tensor.shape)} comes from elsewhere than the model")
            register = self._new(tensor)
            self.recording.constants[register] = tensor
        return register
