"""A part of a decoder's step as a list of native ops on fixed memory: :class:`NativeProgram`.

It computes on a CPU, where the native kernels are built (:func:`native`). Not an op of torch: it is made by whoever
recorded a step, from tensors that stay where they are.

Letters: T rows, H heads, D and Dv head dims, I features in, O features out, K shifts, R rotated pairs, S slots of
states, B rows that have one, F numbers of a state.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from asyncthink_kernels import dispatch

#: q [T,Hq,D] and k, v [T,H,D], [T,H,Dv] are views that the program reads in every run.
_Angles = Sequence[tuple[Tensor, Tensor, bool] | None]


PARTS = ("linear", "append", "attention", "rows", "states")
"""What the time of a program is told apart by; rows: norms, rotations, gates and sums; states: recurrent ones."""


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
        self.ops: Counter[str] = Counter()
        """How many there are of each op, by the names of the methods that append them."""
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
        self.ops[op] += 1

    def norm(
        self, x: Tensor, weight: Tensor, y: Tensor, eps: float, lanes: int, *, wide: bool = False, offset: float = 0.0
    ) -> None:
        """y = weight * round(x / sqrt(mean(x^2) + eps)) over the last dimension; x, y [T,H,I], weight [I].

        ``wide``: (weight + offset) * x / sqrt(mean(x^2) + eps), rounded at the end alone.
        """
        self._append("norm", x, weight, y, eps, lanes, wide, offset)

    def l2_norm(self, x: Tensor, y: Tensor, eps: float, divisor: float, lanes: int) -> None:
        """y = x / sqrt(sum(x^2) + eps) / divisor over the last dimension; x, y [T,H,I], y float32."""
        self._append("l2_norm", x, y, eps, divisor, lanes)

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor, y: Tensor) -> None:
        """y = x * cos + (-x2, x1) * sin for x [T,H,D] = (x1, x2) and cos, sin [T,D]."""
        self._append("rotate", x, cos, sin, y)

    def gate(self, gate: Tensor, up: Tensor, table: Tensor, y: Tensor) -> None:
        """y = table[bits of gate] * up; gate, up, y [T,I] of 16 bits, table [65536]."""
        self._append("gate", gate, up, table, y)

    def gate_wide(self, x: Tensor, gate: Tensor, table: Tensor, y: Tensor) -> None:
        """y = x * table[bits of gate], rounded at the end; x, gate, y [T,I] of 16 bits, table [65536] float32."""
        self._append("gate_wide", x, gate, table, y)

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

    def load_states(self, states: Tensor, x: Tensor) -> None:
        """x [B,F] = states [S,F] of the slots of the run."""
        self._append("load_states", states, x)

    def store_states(self, states: Tensor, x: Tensor) -> None:
        """states [S,F] of the slots of the run = x [B,F]."""
        self._append("store_states", states, x)

    def delta_rule(
        self,
        states: Tensor,
        decay: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        beta: Tensor,
        out: Tensor,
        plain: int,
    ) -> None:
        """The gated delta rule of one token, in the slots of the run, all float32:

        M = M * decay, delta = (v - k M) * beta, M = M + k delta, out = q M for states M [S,H,I,O], decay, q and
        k [B,H,I], v and out [B,H,O], beta [B,H]. How torch adds up the first ``plain`` of O columns and the others is
        what :func:`plain_columns` finds.
        """
        self._append("delta_rule", states, decay, q, k, v, beta, out, plain)

    def conv_update(
        self,
        states: Tensor,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        table: Tensor | None,
        y: Tensor,
        *,
        fused: bool,
    ) -> None:
        """A causal convolution of one token: the last tokens [S,I,O] in the slots of the run move on by x [B,I].

        y = table[bits of (bias + sum of tokens * weight [I,O])]; y [B,I]. Without a table (of 65,536 numbers, for
        16-bit dtypes), y is the sum. ``fused``: products are not rounded; :func:`conv_is_fused` finds what torch does.
        """
        self._append("conv_update", states, x, weight, bias, table, y, fused)

    def run(self, slots: Tensor, plan: Sequence[Tensor], angles: _Angles, states: Tensor | None = None) -> None:
        """Run all ops. ``slots`` [T], the six tensors of a plan of T rows, and cos, sin [K,R] by attention layer.

        ``states`` [B] int64: the slots of the rows' recurrent states, which must differ.
        """
        q_heads, kv_heads, v_dim = self._widest
        floats = self._backend.attention_workspace(plan[2].shape[0], q_heads, kv_heads, v_dim)
        if floats > self._workspace.shape[0]:
            self._workspace = _floats(2 * floats)
        self._backend.run_step_program(self._program, slots, plan, self._workspace, angles, states)


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


@functools.cache
def plain_columns(B: int, H: int, I: int, O: int, threads: int) -> int | None:
    """How many of O columns torch's sum over I rows of [B,H,I,O] adds up row by row here, which decides its rounding.

    Found by trying on random numbers, of the very sizes and ``threads`` (those of torch now), because both decide how
    torch shares its work. None: :meth:`NativeProgram.delta_rule` has no way that gives torch's bits.
    """
    generator = torch.Generator("cpu").manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")

    states, q, k, v, beta, decay = (
        random(B, H, I, O),
        random(B, H, I),
        random(B, H, I),
        random(B, H, O),
        random(B, H, 1),
        random(B, H, 1, 1),
    )
    expected_states, expected = delta_rule(states, decay, q, k, v, beta)
    out, slots = torch.empty_like(v), torch.arange(B, device="cpu")
    for lanes in (16, 8, 1):
        got, plain, program = states.clone(), O // (4 * lanes) * (4 * lanes), NativeProgram()
        program.delta_rule(got, decay[..., 0].expand(B, H, I), q, k, v, beta[..., 0], out, plain)
        program.run(*_NO_STEP, slots)
        if torch.equal(got, expected_states) and torch.equal(out, expected):
            return plain
    return None


@functools.cache
def conv_is_fused(B: int, I: int, O: int, dtype: torch.dtype, bias: bool, threads: int) -> bool | None:
    """Whether torch's convolution over O tokens of I channels leaves products unrounded here; found by trying as above.

    None: :meth:`NativeProgram.conv_update` has no way that gives torch's bits.
    """
    generator = torch.Generator("cpu").manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu").to(dtype)

    states, x, weight, offset = random(B, I, O), random(B, I, 1), random(I, 1, O), random(I) if bias else None
    window = torch.cat([states, x], dim=-1)
    expected = torch.nn.functional.conv1d(window, weight, offset, groups=I)[..., -1]
    got, slots = torch.empty(B, I, dtype=dtype, device="cpu"), torch.arange(B, device="cpu")
    for fused in (True, False):
        program = NativeProgram()
        program.conv_update(states.clone(), x[..., 0], weight[:, 0], offset, None, got, fused=fused)
        program.run(*_NO_STEP, slots)
        if torch.equal(got, expected):
            return fused
    return None


def delta_rule(states: Tensor, decay: Tensor, q: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """What :meth:`NativeProgram.delta_rule` computes: M [B,H,I,O], decay [B,H,1 or I,1], beta [B,H,1] -> (M, out)."""
    decayed = states * decay
    delta = (v - (decayed * k.unsqueeze(-1)).sum(dim=-2)) * beta
    updated = decayed + k.unsqueeze(-1) * delta.unsqueeze(-2)
    return updated, (updated * q.unsqueeze(-1)).sum(dim=-2)


def _no_step() -> tuple[Tensor, list[Tensor], _Angles]:
    """What a program without attention is given."""
    sizes = ((0, 6), (0,), (0, 5), (1,), (0,), (1,))
    plan = [torch.zeros(size, dtype=torch.int32, device="cpu") for size in sizes]
    return torch.zeros(0, dtype=torch.int64, device="cpu"), plan, []


_NO_STEP = _no_step()
