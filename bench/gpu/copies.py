"""What memory does: copy bandwidth at several sizes, and the ops that write K and V against it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from asyncthink_kernels import append_kv, copy_pages, dispatch, join_append, merge_states, use_backend
from asyncthink_kernels.testing import TOLERANCE, angles, compare

from .measure import Rules, alive
from .record import Copy, Op
from .timing import Clock, first_line

COPIED = tuple(1 << power for power in (22, 24, 25, 26, 27, 28, 30))  # bytes read; as many are written


@dataclass(frozen=True)
class Sizes:
    """Letters: L layers, H kv heads, D head_dim, S page_size, N tokens of a join, T rows, n states or pages."""

    L: int = 28
    H: int = 8
    D: int = 128
    S: int = 16
    N: int = 2048
    T: tuple[int, int] = (64, 8192)  # a decoding step, a prefill
    n: int = 8


SMALL = Sizes(L=2, H=2, D=16, N=32, T=(4, 32), n=3)


def copies(clock: Clock, sizes: Sequence[int], seconds: float) -> list[Copy]:
    """Copies of random numbers on the device, flushed, `seconds` for each size."""
    found = []
    for size in sizes:
        source = torch.randint(0, 256, (size,), dtype=torch.uint8, device=clock.device)
        target = torch.empty_like(source)
        ready = clock.ready(partial(target.copy_, source))
        spread = clock.in_turn({"copy": ready.call}, seconds, clock.flushed)["copy"]
        found.append(Copy(2 * size, spread))
    return found


@dataclass(frozen=True)
class Case:
    """`call` runs the op; `written` are the tensors it writes to, None where it returns new ones; `bytes` must move."""

    name: str
    detail: str
    bytes: int
    call: Callable[[], tuple[Tensor, ...] | None]
    written: tuple[Tensor, ...] | None = None
    backend: str | None = None

    def by_backend(self, device: str) -> list[Case]:
        """The case on each backend made for a GPU; elsewhere on the default one."""
        names = [name for name in dispatch.backends_for(self.name, device) if device == "cuda" and name != "reference"]
        return [replace(self, detail=f"{self.detail}, {name}", backend=name) for name in names] or [self]

    def run(self) -> tuple[Tensor, ...] | None:
        """`call` on the case's backend."""
        with use_backend(self.backend) if self.backend else nullcontext():
            return self.call()

    def check(self, dtype: torch.dtype) -> None:
        """AssertionError unless the op does what the reference does, beginning from the same memory."""
        before = [each.clone() for each in self.written or ()]
        mine = [each.clone() for each in self.run() or self.written or ()]
        for tensor, values in zip(self.written or (), before, strict=True):
            tensor.copy_(values)
        with use_backend("reference"):
            expected = self.call() or self.written or ()
        for actual, right in zip(mine, expected, strict=True):
            compare(actual, right, limit=TOLERANCE[dtype].out, what=self.name)


def measure(
    clock: Clock, dtype: torch.dtype, sizes: Sizes, seconds: float, rules: Rules, done: Sequence[Op] = ()
) -> Iterator[Op]:
    """Our own ops that write, but those `done`, each checked, then timed, `seconds` for each, half of them flushed.

    On a GPU each backend there is. One by one, so that whoever asks has them all if one takes the device along:
    DeviceLost is raised behind its Op.
    """
    known = {(op.name, op.detail) for op in done}
    everyone = (each for case in cases(clock.device, dtype, sizes) for each in case.by_backend(clock.device.type))
    for case in everyone:
        if (case.name, case.detail) in known:
            continue
        rules.now("the ops that write", case.name)
        reason = rules.without.get(case.name)
        try:
            if reason is None:
                case.check(dtype)
        except Exception as error:  # one op that fails must not hide the others
            reason = f"{type(error).__name__}: {first_line(error)}"
        if reason is not None:
            yield Op(case.name, case.detail, case.bytes, reason)
            alive(clock)
            continue
        ready = clock.ready(case.run)
        flushed, warm = (clock.in_turn({"": ready.call}, seconds / 2, how)[""] for how in (clock.flushed, clock.warm))
        yield Op(case.name, case.detail, case.bytes, ready.reason, flushed, warm)


def cases(device: torch.device, dtype: torch.dtype, x: Sizes) -> Iterator[Case]:
    """One by one: each owns the memory it works on."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, device=device).to(dtype)

    def caches(layers: int, tokens: int) -> tuple[Tensor, Tensor]:
        pages = 2 * (-(-tokens // x.S))
        return normal(layers, pages, x.S, x.H, x.D), normal(layers, pages, x.S, x.H, x.D)

    token = 2 * x.H * x.D * dtype.itemsize  # K and V of a layer
    for rows in x.T:
        k, v = caches(1, rows)
        new_k, new_v = normal(rows, x.H, x.D), normal(rows, x.H, x.D)
        slots = torch.randperm(k.shape[1] * x.S, device=device)[:rows]
        call = partial(append_kv, new_k, new_v, k[0], v[0], slots)
        yield Case("append_kv", f"{rows} tokens, 1 layer", 2 * rows * token, call, (k, v))

    k, v = caches(x.L, x.N)
    order = torch.randperm(2 * x.N, device=device)
    cos, sin = (each.to(device) for each in angles(torch.full((x.L,), 321), x.D // 2))
    call = partial(join_append, k, v, order[: x.N], order[x.N :], cos, sin)
    yield Case("join_append", f"{x.N} tokens, {x.L} layers", 2 * x.N * x.L * token, call, (k, v))

    k, v = caches(x.L, x.N)
    order = torch.randperm(k.shape[1], device=device)
    half = k.shape[1] // 2
    call = partial(copy_pages, k, v, order[:half], order[half:])
    yield Case("copy_pages", f"{half} pages, {x.L} layers", 2 * half * x.S * x.L * token, call, (k, v))

    rows, heads = x.T[1] // 8, 4 * x.H
    states, lses = normal(x.n, rows, heads, x.D), torch.randn(x.n, rows, heads, device=device)
    moved = (x.n + 1) * (states[0].nbytes + lses[0].nbytes)
    yield Case("merge_states", f"{x.n} states, {rows} rows, {heads} heads", moved, partial(merge_states, states, lses))
