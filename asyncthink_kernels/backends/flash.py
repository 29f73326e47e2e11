"""flash-attn for steps in which every branch is new: plain causal attention over K and V that the step itself brings.

The only user of `flash_attn`; `tree_attention` computes every other step, and these too where flash-attn cannot. Its
rounding is not ours: which kernel computes a prefill depends on what else is in the step, so with flash-attn installed
a branch is no longer the same to the last bit whatever runs beside it. Naming a backend keeps flash-attn out.

Letters: T rows, B branches, Hq query heads, H kv heads, D and Dv head_dim of K and V.

Source: FlashAttention-2 (arXiv 2307.08691).
"""

from __future__ import annotations

import functools
import importlib
import re
from types import ModuleType

import torch
from torch import Tensor

_OLDEST = (2, 8)  # flash-attn
_OLDEST_GPU = (8, 0)  # compute capability
_LARGEST = 256  # head_dim
_STEP = 8  # a head_dim that is no multiple would be padded: a copy of Q, K and V


def unavailable_reason(device: str) -> str | None:
    """None if flash-attn runs here on device type ``device``, else one line that says why not."""
    reason = _device_reason(device)
    if reason is None:
        found = _load()
        reason = found if isinstance(found, str) else None
    return reason


def unsupported_reason(q: Tensor, v: Tensor, sinks: Tensor | None) -> str | None:
    """None if it takes q [T,Hq,D] and v [T,H,Dv], whatever the window and the softcap; else why not."""
    D, Dv = q.shape[2], v.shape[2]
    if q.dtype not in (torch.float16, torch.bfloat16):
        return f"needs float16 or bfloat16, got {q.dtype}"
    if Dv != D:
        return f"needs K and V of one head_dim, got {D} and {Dv}"
    if D > _LARGEST or D % _STEP:
        return f"needs a head_dim that is a multiple of {_STEP} and at most {_LARGEST}, got {D}"
    if sinks is not None:
        return "has no sinks"
    return None


def note() -> str:
    """What runs, and when."""
    found = _load()
    version = getattr(found, "__version__", "")
    return f"flash-attn {version}, for steps of new branches alone: 16 bits, K and V of one head_dim, no sinks"


def prefill(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    starts: Tensor,
    longest: int,
    *,
    scale: float | None,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """Causal attention of B branches over themselves: what `tree_attention` gives where nothing was there before.

    q [T,Hq,D], k and v [T,H,D]; branch b has rows ``starts[b]`` to ``starts[b + 1]``, starts [B+1] int32 on the device
    of ``q``, and none has more than ``longest``. Options as in `tree_attention`. -> [T,Hq,D].
    """
    out: Tensor = importlib.import_module("flash_attn").flash_attn_varlen_func(
        q,
        k,
        v,
        cu_seqlens_q=starts,
        cu_seqlens_k=starts,
        max_seqlen_q=longest,
        max_seqlen_k=longest,
        softmax_scale=scale,
        causal=True,
        window_size=(-1, -1) if window is None else (window - 1, 0),  # how far back, itself not counted
        softcap=0.0 if softcap is None else softcap,
    )
    return out


def _device_reason(device: str) -> str | None:
    if device != "cuda":
        return "serves cuda only"
    if not torch.cuda.is_available():
        return "no GPU"
    if torch.version.hip is None and torch.cuda.get_device_capability() < _OLDEST_GPU:
        return f"needs compute capability 8.0, got {'.'.join(map(str, torch.cuda.get_device_capability()))}"
    return None


@functools.cache
def _load() -> ModuleType | str:
    """The module, or why there is none."""
    try:
        module = importlib.import_module("flash_attn")
    except ImportError as error:
        return "flash-attn is not installed" if error.name == "flash_attn" else f"{type(error).__name__}: {error}"
    if not callable(getattr(module, "flash_attn_varlen_func", None)):
        return "flash_attn has no flash_attn_varlen_func"  # flash-attn 4 uses this namespace too
    version = str(getattr(module, "__version__", "unknown"))
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < _OLDEST:
        return f"needs flash-attn {'.'.join(map(str, _OLDEST))} or newer, got {version}"
    return module
