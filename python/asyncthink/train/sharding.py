"""One model on several processes: each holds a share of the weights, their gradients and their moments.

torch's ``fully_shard`` (FSDP2) divides every weight along its rows. A layer's weights are whole only while that layer
computes; gradients are summed and divided again after each of its backward passes. Everything here is a no-op for a
model that one process holds whole.
"""

from __future__ import annotations

import ctypes
import types
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor
from transformers.modeling_layers import GradientCheckpointingLayer

from asyncthink.train.distributed import World

Result = TypeVar("Result")
_METHOD = "asyncthink_inside"
_M_MMAP_THRESHOLD = -3  # of malloc.h


def shard(model: nn.Module, world: World, device: torch.device) -> None:
    """Divide the weights of ``model`` among the processes, in place: one group per decoder layer, one for the rest.

    Gradients become sums over processes, as one process computes them on all data. Weights on the meta device stay
    there until ``model.to_empty(device=...)``. All processes must then run the model equally often, because every pass
    gathers weights (:func:`asyncthink.train.idle.idle_pass`).

    Raises ValueError for a model without decoder layers that could be gathered one at a time.
    """
    layers = decoder_layers(model)
    if device.type == "cpu":
        _give_back_freed_memory()
    mesh = init_device_mesh(device.type, (world.size,))
    for module in (*layers, model):
        # The rest is gathered again for the backward pass too: outside of a pass all parameters are the shares.
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
    sharded: Any = model
    for module in sharded.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo knows no other reduction
    sharded.asyncthink_inside = types.MethodType(_call, model)
    register_fsdp_forward_method(model, _METHOD)


def decoder_layers(model: nn.Module) -> list[GradientCheckpointingLayer]:
    """The layers that are gathered one at a time. Raises ValueError for a model without any."""
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise ValueError(f"model: expected decoder layers to divide among processes, {type(model).__name__} has none")
    return layers


def _give_back_freed_memory() -> None:
    """Have glibc return blocks of 256 KiB and more to the system as soon as they are freed.

    By default it keeps blocks of up to 32 MiB, and as the whole weights of a layer come and go, what it keeps grows to
    more than the whole model. Other C libraries have no such function.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 2**18)


def _call(model: nn.Module, compute: Callable[[], Result]) -> Result:
    return compute()


def inside(model: nn.Module, compute: Callable[[], Result]) -> Result:
    """``compute()`` as a forward pass of ``model``: weights outside of its layers are whole meanwhile.

    For a pass that does not go through ``model(...)``, but through its parts. Tensors in the result get the gradients.
    """
    return getattr(model, _METHOD)(compute) if isinstance(model, FSDPModule) else compute()


def is_sharded(model: nn.Module) -> bool:
    """Whether the weights are divided among processes."""
    return isinstance(model, FSDPModule)


def whole(tensor: Tensor) -> Tensor:
    """All rows of a weight, in every process. All processes must call this; the result must not be changed."""
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """The rows that this process holds; shares memory with ``tensor``."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def own_rows(tensor: Tensor) -> tuple[int, int]:
    """(first, last) of the rows that this process holds; the last one is excluded.

    >>> own_rows(torch.zeros(5, 2))
    (0, 5)
    """
    if not isinstance(tensor, DTensor):
        return 0, tensor.shape[0]
    share = -(-tensor.shape[0] // tensor.device_mesh.size())  # rows of a share; the last ones may have fewer, or none
    first = min(share * tensor.device_mesh.get_local_rank(), tensor.shape[0])
    return first, min(first + share, tensor.shape[0])


class Rows(Protocol):
    """What can be read by rows: a tensor, or a tensor in a file."""

    def __getitem__(self, rows: slice, /) -> Tensor: ...


@torch.no_grad()
def assign(tensor: Tensor, rows: Rows) -> None:
    """Overwrite the rows that this process holds with the same rows of ``rows``; others are not read."""
    first, last = own_rows(tensor)
    if first < last:
        local(tensor).copy_(rows[first:last])
