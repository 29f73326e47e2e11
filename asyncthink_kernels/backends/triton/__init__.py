"""The ops in Triton: the default on a GPU, and with ``TRITON_INTERPRET=1`` a way to run the same kernels on a CPU.

Signatures are those of :mod:`~asyncthink_kernels.backends.reference`. What each kernel is launched with (tiles, warps,
stages) is a pure function of shapes and architecture, :mod:`asyncthink_kernels.tuning`.
"""

from __future__ import annotations

import torch
import triton

from asyncthink_kernels.backends.triton._launch import INTERPRETED
from asyncthink_kernels.backends.triton.append_kv import append_kv
from asyncthink_kernels.backends.triton.copy_pages import copy_pages
from asyncthink_kernels.backends.triton.join_append import join_append
from asyncthink_kernels.backends.triton.merge_states import merge_states
from asyncthink_kernels.backends.triton.paged_attention import paged_attention
from asyncthink_kernels.backends.triton.tree_attention import tree_attention

__all__ = ["append_kv", "copy_pages", "join_append", "merge_states", "paged_attention", "tree_attention"]

_OLDEST = (8, 0)  # compute capability: bfloat16 and asynchronous copies


def unavailable_reason(op: str, device: str) -> str | None:
    """None if the ops run on device type ``device``, else one line that says why not."""
    if op not in __all__:
        return f"leaves {op} to others"
    if device == "cpu":
        return None if INTERPRETED else "compiles for GPUs; on a CPU set TRITON_INTERPRET=1 before Python starts"
    if INTERPRETED:
        return "TRITON_INTERPRET=1 is set: kernels run in the interpreter, on CPU tensors only"
    if not torch.cuda.is_available():
        return "no GPU"
    if torch.version.hip is None and torch.cuda.get_device_capability() < _OLDEST:
        return f"needs compute capability 8.0, got {'.'.join(map(str, torch.cuda.get_device_capability()))}"
    return None


def note(device: str) -> str:
    """What runs."""
    version = f"Triton {triton.__version__}"
    if device == "cpu":
        return f"{version}, in its interpreter: for tests, far slower than anything else"
    return f"{version} on {torch.cuda.get_device_name()}; preferred unmeasured"
