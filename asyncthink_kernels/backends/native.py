"""The C++ kernels of the CPU: options, scratch and threads are handed over; the only user of `_cpu`.

Signatures are those of :mod:`~asyncthink_kernels.backends.reference`. The kernels check every size, dtype, stride and
index value themselves and raise ValueError before they write; only the values of a plan are checked elsewhere, once a
step (:mod:`~asyncthink_kernels.plan`). They allocate nothing.

Threads: two OpenMP runtimes in one process starve each other, so `_cpu` links none and runs on the one torch brings.
Its ``GOMP_parallel`` is found through torch's own extension module and called with torch's own thread count, so a step
that alternates torch ops and ours keeps one pool of threads warm.
"""

from __future__ import annotations

import ctypes
import importlib
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from asyncthink_kernels.arguments import PagedAttention, Sample, TreeAttention
from asyncthink_kernels.quantized import QuantizedWeight


def load(name: str) -> ModuleType | None:
    """The native module, or None if it was not built. One that exists but cannot be loaded is an error, not a None."""
    try:
        return importlib.import_module(f"asyncthink_kernels.{name}")
    except ModuleNotFoundError:
        return None


def _gomp_parallel() -> int:
    """The address of GOMP_parallel in torch's OpenMP (libgomp, or libomp's compatible entry); 0 if it has none.

    A symbol looked up in a library's handle is looked for in what that library depends on: this is the runtime torch
    itself calls, even where the process has mapped another beside it.
    """
    try:
        symbol = ctypes.CDLL(torch._C.__file__).GOMP_parallel
    except AttributeError:
        return 0
    return ctypes.cast(symbol, ctypes.c_void_p).value or 0


_cpu: Any = load("_cpu")
_GOMP_PARALLEL = _gomp_parallel()


def unavailable_reason(op: str, device: str) -> str | None:
    """None if ``op`` runs on device type ``device``, else one line that says why it does not."""
    if _cpu is None:
        return "_cpu was not built: install again where a C++ compiler is found"
    return None if hasattr(_cpu, op) else "not written yet"


def note(device: str) -> str:
    """What runs: instruction set and threads."""
    threads = f"{torch.get_num_threads()} threads of torch" if _GOMP_PARALLEL else "1 thread: torch has no OpenMP here"
    return f"{_cpu.isa()}, {threads}"


def append_kv(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
    _share_threads()
    _cpu.append_kv(k, v, k_cache, v_cache, slots)


def tree_attention(args: TreeAttention, out: Tensor, lse: Tensor) -> None:
    _share_threads()
    floats = _cpu.tree_attention_workspace(args.entries.shape[0], args.q.shape[1], *args.v_cache.shape[2:])
    _cpu.tree_attention(args, out, lse, _scratch(floats))


def paged_attention(args: PagedAttention, out: Tensor, lse: Tensor) -> None:
    _share_threads()
    B, Hq, _ = args.q.shape
    _, S, H, Dv = args.v_cache.shape
    floats = _cpu.paged_attention_workspace(args.block_tables.shape[1], S, args.chunk, B, Hq, H, Dv)
    _cpu.paged_attention(args, out, lse, _scratch(floats))


def merge_states(out_states: Tensor, lse_states: Tensor, out: Tensor, lse: Tensor) -> None:
    _share_threads()
    _cpu.merge_states(out_states, lse_states, out, lse)


def join_append(
    k_caches: Tensor,
    v_caches: Tensor,
    src_slots: Tensor,
    dst_slots: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    interleaved: bool,
) -> None:
    _share_threads()
    _cpu.join_append(k_caches, v_caches, src_slots, dst_slots, cos, sin, interleaved)


def copy_pages(k_caches: Tensor, v_caches: Tensor, src: Tensor, dst: Tensor) -> None:
    _share_threads()
    _cpu.copy_pages(k_caches, v_caches, src, dst)


def sample(args: Sample, tokens: Tensor, logprobs: Tensor) -> None:
    _share_threads()
    _cpu.sample(args, tokens, logprobs)


def quantized_linear(x: Tensor, weight: QuantizedWeight, bias: Tensor | None, y: Tensor) -> None:
    _share_threads()
    scratch = _scratch(_cpu.quantized_linear_workspace(*x.shape))
    _cpu.quantized_linear(x, weight.quants, weight.scales, weight.mins, bias, y, scratch)


def packed_linear(x: Tensor, packed: Tensor, bias: Tensor | None, y: Tensor) -> None:
    _share_threads()
    _cpu.packed_linear(x, packed, bias, y)


def row_attention(args: Any, out: Tensor, lse: Tensor) -> None:
    """``args``: :class:`asyncthink_kernels.ops.row_attention.RowArguments`."""
    _share_threads()
    _cpu.row_attention(args, out, lse, _row_scratch(args))


def row_attention_backward(args: Any, out: Tensor, lse: Tensor, grad: Tensor, q: Tensor, k: Tensor, v: Tensor) -> None:
    """Writes the gradient of q, and adds to those of k and v."""
    _share_threads()
    _cpu.row_attention_backward(args, out, lse, grad, q, k, v, _row_scratch(args))


def _row_scratch(args: Any) -> Tensor:
    return _scratch(_cpu.row_attention_workspace(*args.k.shape, args.v.shape[2]))


def step_program() -> Any:
    """An empty StepProgram (csrc/cpu/step_program.h)."""
    return _cpu.step_program()


def run_step_program(program: Any, *inputs: Any) -> None:
    _share_threads()
    program.run(*inputs)


def attention_workspace(partials: int, q_heads: int, kv_heads: int, v_head_dim: int) -> int:
    """Floats of scratch that attention needs for so many (row, item) pairs."""
    floats: int = _cpu.tree_attention_workspace(partials, q_heads, kv_heads, v_head_dim)
    return floats


def quantized_workspace(rows: int, in_features: int) -> int:
    """Floats of scratch that quantized_linear needs."""
    floats: int = _cpu.quantized_linear_workspace(rows, in_features)
    return floats


def _share_threads() -> None:
    """Our loops run on torch's pool, with as many threads as torch's own loops on this thread."""
    _cpu.set_parallel(_GOMP_PARALLEL, torch.get_num_threads())


def _scratch(floats: int) -> Tensor:
    return torch.empty(floats, dtype=torch.float32, device="cpu")
