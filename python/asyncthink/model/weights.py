"""Whether a model's weights are still those that something was computed from."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn


def version(weight: Tensor) -> tuple[int, int]:
    """Address and change count of a weight: other numbers once it is moved, or changed in place.

    Writing through ``weight.data`` or to inference tensors escapes torch's change count.
    """
    return weight.data_ptr(), 0 if weight.is_inference() else weight._version


def described(modules: Iterable[nn.Module]) -> str:
    """Dtype and device of the first weight of each module that has one."""
    weights = [next(module.parameters(), None) for module in modules]
    return " and ".join(dict.fromkeys(f"{weight.dtype} on {weight.device}" for weight in weights if weight is not None))
