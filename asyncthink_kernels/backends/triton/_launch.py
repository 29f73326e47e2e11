"""What all launches share."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import triton
from torch import Tensor

#: Triton decided at import, by TRITON_INTERPRET, whether kernels are compiled or interpreted.
INTERPRETED: bool = triton.knobs.runtime.interpret


@dataclass(frozen=True)
class Variant:
    """One specialization of a kernel, described without tensors: what ahead-of-time compilation needs.

    ``types`` maps the kernel's run-time arguments to Triton types ("*bf16", "i32", "i64", "fp32"), ``constants`` its
    constexpr arguments (and pointers that are None) to values; ``aligned`` names the run-time arguments that are
    multiples of 16. ``name`` is unique and says op, dtype, sizes and tile.
    """

    name: str
    kernel: Any
    types: Mapping[str, str]
    constants: Mapping[str, Any]
    aligned: frozenset[str]
    num_warps: int
    num_stages: int
    options: Mapping[str, Any] = field(default_factory=dict)


def architecture(tensor: Tensor) -> str:
    """The key of :mod:`asyncthink_kernels.tuning`: "sm_90", "gfx942", or "interpreter" for a CPU tensor."""
    return _architecture(tensor.device) if tensor.device.type == "cuda" else "interpreter"


@functools.cache
def _architecture(device: torch.device) -> str:
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip is not None:
        return str(properties.gcnArchName).partition(":")[0]
    return f"sm_{properties.major}{properties.minor}"
