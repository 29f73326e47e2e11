"""Decode steps on a CPU without transformers' Python: :class:`RecordedSteps`.

A step of a small model takes longer in Python than its weights take to be read. So a decode step is recorded when its
sizes have come twice, and made to a program (:mod:`asyncthink.model.lowering`). The next step of these sizes runs
both ways: only where logits, K and V are the same, **bit by bit**, does the program serve from then on. So nobody can
tell a recorded step from one of the model itself, except by its time.

Letters: T rows of a step, N rows whose logits are wanted, V vocabulary.
"""

from __future__ import annotations

import itertools
import operator
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as every_module
from torch.utils.hooks import RemovableHandle

from asyncthink.model.attention import PagedAttention, Step
from asyncthink.model.checks import one_line
from asyncthink.model.hook import HookedModel
from asyncthink.model.lowering import StepProgram
from asyncthink.model.places import Memory
from asyncthink.model.quantized import QuantizedLinear
from asyncthink.model.recorder import NotRecordableError, Recording, record
from asyncthink_kernels.ops.step_program import PARTS, native

MAX_ROWS = 64
"""Largest recorded step, in rows. In bigger steps Python costs little."""

MAX_PROGRAMS = 64
"""Programs kept at once; the least recently used goes first."""

DECODING, OTHERS = 2, 16
"""How often sizes have come when they are recorded: where every row draws, the next token brings them again; a prompt's
may never come again, and a step that is recorded takes a few times as long."""

_Key = tuple[int, int]
_Run = Callable[[Any, Tensor], Tensor]

_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_OWN = (nn.Module, QuantizedLinear)
_KNOWN = ("torch.nn.", "transformers.")  # where classes of modules come from whose Python is known not to change
_FORWARDS = ("torch.", "transformers.", f"{QuantizedLinear.__module__}.")  # and their forwards, decorators included


class RecordedSteps:
    """Runs steps by programs where it can; :meth:`step` gives None where the model itself has to run.

    A program reads weights where they lie. It is given up when they are moved and when the model changes: a module or
    parameter in the place of another one, a hook, an attribute more or less on a module, another ``forward`` of a
    class, another function that a ``forward`` calls by its name. Changes of another kind (the values of a config) need
    :meth:`clear`, as CUDA graphs do.
    """

    def __init__(self, hooked: HookedModel, attention: PagedAttention) -> None:
        self._hooked, self._attention = hooked, attention
        self.reason: str | None = _unknown(hooked.model)  # why nothing is recorded
        self._programs: OrderedDict[_Key, StepProgram] = OrderedDict()
        self._seen: Counter[_Key] = Counter()
        self._recordings: dict[_Key, Recording] = {}
        self.memory = Memory()
        self._proven = False  # two passes of the same sizes have made the same calls
        self._model = _State(hooked.model)

    @property
    def programs(self) -> tuple[StepProgram, ...]:
        """Those that serve now, the latest used last."""
        return tuple(self._programs.values())

    @property
    def seconds(self) -> dict[str, float]:
        """What the programs that serve now have spent so far, by :data:`asyncthink_kernels.ops.step_program.PARTS`."""
        spent = [program.seconds for program in self._programs.values()]
        return {part: sum(each[part] for each in spent) for part in PARTS}

    def serves(self, agents: int) -> bool:
        """Whether decode steps of so many agents run by a program."""
        return (agents, agents) in self._programs

    def clear(self) -> None:
        """Forget all programs, and record again."""
        self._programs.clear()
        self._seen.clear()
        self._recordings.clear()
        self.memory = Memory()
        self._proven = False
        self.reason = _unknown(self._hooked.model)
        self._model = _State(self._hooked.model)

    def takes(self, step: Step) -> bool:
        """Whether steps of this size are recorded here."""
        return self.reason is None and len(step.tokens) <= MAX_ROWS and native() is not None

    def step(self, step: Step, rows: Tensor, run: _Run) -> Tensor:
        """Logits [N,V] of rows [N] of a step that :meth:`takes` allows; ``run`` is the model itself."""
        if not self._model.is_same():
            self.clear()
            if self.reason is not None:
                return run(step, rows)
        key = self._key(step, rows)
        program = self._programs.get(key)
        if program is not None and not program.in_place():  # weights lie elsewhere now
            self.clear()
        elif program is not None:
            self._programs.move_to_end(key)
            return self._replayed(program, step, rows)
        self._seen[key] += 1
        if self._seen[key] < (DECODING if key[0] == key[1] else OTHERS):
            return run(step, rows)
        try:
            return self._recorded(key, step, rows, run)
        except _DiffersError as error:
            self.reason = str(error)
            return error.logits
        except NotRecordableError as error:
            self.reason, step.calls = str(error), 0
            return run(step, rows)

    def _recorded(self, key: _Key, step: Step, rows: Tensor, run: _Run) -> Tensor:
        """A step by the model itself, which is recorded, or compared with the program of its recording."""
        before = self._recordings.pop(key, None)
        if before is None or not self._proven:
            logits, recording = self._record(step, rows)
            if before is not None and not recording.same_as(before):
                raise NotRecordableError("two passes of the same sizes made different calls")
            self._proven = self._proven or before is not None
            self._recordings[key] = recording
            return logits
        with torch.inference_mode():
            before_it = self._held(step)
            logits = run(step, rows)
            if not logits.isfinite().all():  # a later step decides
                self._recordings[key] = before
                return logits
            try:
                program = self._program(before)
            except (RuntimeError, ValueError) as error:
                raise _DiffersError(f"its program cannot be made: {one_line(error)}", logits) from error
            written = self._held(step)
            self._put_back(step, before_it)
            got = [self._replayed(program, step, rows), *self._held(step)]
            if not all(map(torch.equal, got, (logits, *written))):
                self._put_back(step, written)
                raise _DiffersError("its program gives other bits than the model itself", logits)
        self._programs[key] = program
        if len(self._programs) > MAX_PROGRAMS:
            gone, _ = self._programs.popitem(last=False)
            self._seen[gone] = 0  # else sizes that come in turn would be recorded in every step
        return logits

    def _key(self, step: Any, rows: Tensor) -> _Key:
        """What decides the calls of a pass."""
        return len(step.tokens), len(rows)

    def _record(self, step: Any, rows: Tensor) -> tuple[Tensor, Recording]:
        return record(self._hooked, step, rows, tensors(self._hooked))

    def _program(self, recording: Recording) -> StepProgram:
        return StepProgram(recording, self._places, self.memory)

    @property
    def _places(self) -> list[tuple[Tensor, Tensor]]:
        return [(place.k_cache, place.v_cache) for place in self._attention.layers]

    def _replayed(self, program: StepProgram, step: Step, rows: Tensor) -> Tensor:
        hooked = self._hooked
        inputs = {"input_ids": step.tokens[None], "position_ids": step.positions[None] + hooked.first_position}
        if hooked.keeps_logits:
            inputs["logits_to_keep"] = rows
        with hooked.exclusive(), torch.inference_mode():
            if hooked.linears is not None:
                hooked.linears.copy_changed()  # type: ignore[attr-defined]
            logits = program.run(step, **inputs)[0]
            return logits.clone() if hooked.keeps_logits else logits[rows]

    def _held(self, step: Any) -> list[Tensor]:
        """A copy of what a step writes: K and V of its tokens, in all layers."""
        return [cache[self._tokens(step)] for place in self._places for cache in place]

    def _put_back(self, step: Any, held: list[Tensor]) -> None:
        """Write what :meth:`_held` gave."""
        caches = [cache for place in self._places for cache in place]
        for cache, tokens in zip(caches, held, strict=True):
            cache[self._tokens(step)] = tokens

    def _tokens(self, step: Step) -> tuple[Tensor, Tensor]:
        """Pages and offsets of the step's tokens in the caches."""
        size = self._attention.storage.page_size
        return step.plan.slots // size, step.plan.slots % size


class _DiffersError(NotRecordableError):
    """There is no program with the bits of the model, which has run: its ``logits`` stand."""

    def __init__(self, message: str, logits: Tensor) -> None:
        super().__init__(message)
        self.logits = logits


class _State:
    """What a program takes for granted of a model, so that a change is noticed.

    Every step looks at all modules, in memory that the weights have just driven out of the caches: so it looks at as
    little as will do.
    """

    def __init__(self, model: nn.Module) -> None:
        modules = list(model.modules())
        named = ("_modules", "_parameters", "_buffers")
        tables: list[dict[str, Any]] = [getattr(module, name) for module in modules for name in named]
        self._tables = [table for table in tables if table]
        self._attributes = [module.__dict__ for module in modules]
        self._hooks = RemovableHandle.next_id
        self._held = list(_values(self._tables))
        self._sizes = [list(map(len, dicts)) for dicts in (self._tables, self._attributes)]
        self._forwards = [(kind, kind.forward) for kind in {type(module) for module in modules}]
        self._called = list(itertools.chain.from_iterable(_called(forward) for _, forward in self._forwards))

    def is_same(self) -> bool:
        """Whether modules, parameters, attributes and functions are those that were, and no hook is new."""
        if self._hooks != RemovableHandle.next_id:  # which hooks of any module count up, most of them elsewhere
            if _every_modules_hooks() or any(attributes[hooks] for attributes in self._attributes for hooks in _HOOKS):
                return False
            self._hooks = RemovableHandle.next_id
        return (
            [list(map(len, dicts)) for dicts in (self._tables, self._attributes)] == self._sizes
            and all(map(operator.is_, _values(self._tables), self._held))
            and all(kind.forward is forward for kind, forward in self._forwards)
            and all(names.get(name) is value for names, name, value in self._called)
        )


def _called(forward: Any) -> Iterator[tuple[dict[str, Any], str, Any]]:
    """(globals, name, value) of what a function of Python calls by a global name."""
    if hasattr(forward, "__code__"):
        names: dict[str, Any] = forward.__globals__
        yield from ((names, name, names[name]) for name in forward.__code__.co_names if callable(names.get(name)))


def _every_modules_hooks() -> bool:
    """Whether there are hooks that torch calls for each module of the process."""
    return bool(every_module._global_forward_hooks or every_module._global_forward_pre_hooks)


def _values(tables: list[dict[str, Any]]) -> Iterator[Any]:
    return itertools.chain.from_iterable(map(dict.values, tables))


def _unknown(model: nn.Module) -> str | None:
    """Why the model's Python may do something else from step to step; None where it may not."""
    if _every_modules_hooks():
        return "all modules have hooks (register_module_forward_hook)"
    for name, module in model.named_modules():
        kind = type(module)
        if not (f"{kind.__module__}.".startswith(_KNOWN) or kind in _OWN):
            return f"{name or 'the model'} is a {kind.__module__}.{kind.__qualname__}"
        if any(getattr(module, hooks) for hooks in _HOOKS):
            return f"{name or 'the model'} has hooks"
        if "forward" in module.__dict__:
            return f"{name or 'the model'} has a forward of its own"
        origin = getattr(kind.forward, "__globals__", {}).get("__name__", type(kind.forward).__module__)
        if not f"{origin}.".startswith(_FORWARDS):
            return f"{name or 'the model'} is a {kind.__module__}.{kind.__qualname__} with a forward of {origin}"
    return None


def tensors(hooked: HookedModel) -> Iterator[Tensor]:
    """What a pass may read besides its tokens and positions."""
    for module in hooked.model.modules():
        held = itertools.chain(module._parameters.values(), module._buffers.values())
        yield from (tensor for tensor in held if tensor is not None)
    if hooked.linears is not None:
        yield from hooked.linears.tensors()  # type: ignore[attr-defined]
