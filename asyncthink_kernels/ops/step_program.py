"""A part of a decoder's step as a list of native ops on fixed memory: :class:`NativeProgram`.

It computes on a CPU, where the native kernels are built (:func:`native`). Not an op of torch: it is made by whoever
recorded a step, from tensors that stay where they are.

Letters: T rows, H heads, D and Dv head dims, I features in, O features out, K shifts, R rotated pairs.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from asyncthink_kernels import dispatch

#: q [T,Hq,D] and k, v [T,H,D], [T,H,Dv] are views that the program reads in every run.
_Angles = Sequence[tuple[Tensor, Tensor, bool] | None]


PARTS = ("linear", "append", "attention", "rows")
"""What the time of a program is told apart by; rows: norms, rotations, gates and sums."""


def native() -> Any | None:
    """The backend that runs programs, or None: not built, or another backend is named."""
    return dispatch.find_native()


class NativeProgram:
    """Ops in the order of the calls that append them. Every tensor must stay where it is, with its sizes and strides.

    Raises ValueError where sizes do not fit, when an op is appended.

    >>> x, y = torch.ones(2, 3), torch.empty(2, 3)
    >>> program = NativeProgram()
    >>> program.add(x, x, y)
    >>> len(program)
    1
    """

    def __init__(self) -> None:
        backend = native()
        if backend is None:
            raise RuntimeError("NativeProgram: expected the native CPU kernels, got another backend")
        self._backend: Any = backend
        self._program = self._backend.step_program()
        self._held: list[Any] = []  # what the program points at
        self._widest = (1, 1, 1)  # of attention: query heads, kv heads, head dim of V
        self._workspace = _floats(0)
        self._scratch: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self._program)

    @property
    def seconds(self) -> dict[str, float]:
        """Of all runs so far, by :data:`PARTS`."""
        return dict(zip(PARTS, self._program.seconds, strict=True))

    def _append(self, op: str, *args: Any) -> None:
        for tensor in filter(torch.is_tensor, tree_leaves(args)):
            if tensor.device.type != "cpu":
                raise ValueError(f"{op}: expected tensors on the CPU, got one on {tensor.device}")
        getattr(self._program, op)(*args)
        self._held.append(args)

    def norm(self, x: Tensor, weight: Tensor, y: Tensor, eps: float, lanes: int) -> None:
        """y = weight * round(x / sqrt(mean(x^2) + eps)) over the last dimension; x, y [T,H,I], weight [I]."""
        self._append("norm", x, weight, y, eps, lanes)

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor, y: Tensor) -> None:
        """y = x * cos + (-x2, x1) * sin for x [T,H,D] = (x1, x2) and cos, sin [T,D]."""
        self._append("rotate", x, cos, sin, y)

    def gate(self, gate: Tensor, up: Tensor, table: Tensor, y: Tensor) -> None:
        """y = table[bits of gate] * up; gate, up, y [T,I] of 16 bits, table [65536]."""
        self._append("gate", gate, up, table, y)

    def add(self, a: Tensor, b: Tensor, y: Tensor) -> None:
        """y = a + b, all [T,I]."""
        self._append("add", a, b, y)

    def linears(self, x: Tensor, parts: Sequence[tuple[Tensor, Tensor | None, Tensor]]) -> None:
        """For each part (packed, bias, y): y [T,O] is :func:`packed_linear` of x [T,I]."""
        self._append("linears", x, list(parts))

    def quantized_linears(
        self, x: Tensor, parts: Sequence[tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor]]
    ) -> None:
        """For each part (quants, scales, mins, bias, y): y [T,O] is :func:`quantized_linear` of x [T,I]."""
        floats = self._backend.quantized_workspace(*x.shape)
        scratch = self._scratch.setdefault(floats, _floats(floats))
        self._append("quantized_linears", x, list(parts), scratch)

    def attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        out: Tensor,
        *,
        scale: float | None,
        window: int | None,
        softcap: float | None,
        sinks: Tensor | None,
        layer: int,
    ) -> None:
        """append_kv of k, v, then tree_attention of q into out [T,Hq,Dv]; slots and plan are those of the run."""
        T, Hq, D = q.shape
        q_heads, kv_heads, v_dim = self._widest
        self._widest = max(q_heads, Hq), max(kv_heads, v.shape[1]), max(v_dim, v.shape[2])
        lse = _floats(T, Hq)
        scale = D**-0.5 if scale is None else scale
        self._append("attention", q, k, v, k_cache, v_cache, out, lse, scale, window, softcap, sinks, layer)

    def run(self, slots: Tensor, plan: Sequence[Tensor], angles: _Angles) -> None:
        """Run all ops. ``slots`` [T], the six tensors of a plan of T rows, and cos, sin [K,R] by attention layer."""
        q_heads, kv_heads, v_dim = self._widest
        floats = self._backend.attention_workspace(plan[2].shape[0], q_heads, kv_heads, v_dim)
        if floats > self._workspace.shape[0]:
            self._workspace = _floats(2 * floats)
        self._backend.run_step_program(self._program, slots, plan, self._workspace, angles)


def _floats(*shape: int) -> Tensor:
    """Memory for float32 on the CPU, whatever torch's defaults are."""
    return torch.empty(shape, dtype=torch.float32, device="cpu")


@functools.cache
def lanes_of_sums(length: int) -> int | None:
    """How many floats at a time torch's sum over ``length`` floats takes here, which decides how it rounds: 8 or 16.

    Found by trying both on random numbers. None: neither gives torch's bits.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    rows = torch.randn(256, length, generator=generator, dtype=torch.float32, device="cpu")
    means = torch.cat([rows[:128].pow(2).mean(-1), *(row[None].pow(2).mean(-1) for row in rows[128:])])
    expected = rows * torch.rsqrt(means + 1e-5)[:, None]
    weight = torch.ones(length, dtype=torch.float32, device="cpu")
    for lanes in (8, 16):
        got, program = torch.empty_like(rows), NativeProgram()
        program.norm(rows[:, None], weight, got[:, None], 1e-5, lanes)
        program.run(*_NO_STEP)
        if torch.equal(got, expected):
            return lanes
    return None


def _no_step() -> tuple[Tensor, list[Tensor], _Angles]:
    """What a program without attention is given."""
    sizes = ((0, 6), (0,), (0, 5), (1,), (0,), (1,))
    plan = [torch.zeros(size, dtype=torch.int32, device="cpu") for size in sizes]
    return torch.zeros(0, dtype=torch.int64, device="cpu"), plan, []


_NO_STEP = _no_step()
