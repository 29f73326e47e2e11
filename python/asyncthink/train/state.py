"""The training state in a checkpoint: moments, random state and progress, for an exact resume.

The tensors are a distributed checkpoint (torch.distributed.checkpoint): every process writes the rows that it holds,
and any number of processes reads them again. Resume only from folders that you trust: its index is a pickle.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as load_shares
from torch.distributed.checkpoint.state_dict_saver import save as save_shares

from asyncthink.train.distributed import World
from asyncthink.train.steps import LeftOut

STATE = "training_state"
STATE_NUMBERS = "training_state.json"
RANDOM, RANDOM_CUDA = "random", "random_cuda"


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of a run: steps done, training tokens seen, seconds spent, optimizer steps that changed no weight."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    left_out: LeftOut = field(default_factory=LeftOut)


def save_state(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress, world: World
) -> None:
    """Write what a resume needs besides the weights into a checkpoint folder. All processes call this."""
    tensors = moments(model, optimizer)
    if world.is_main:  # no step draws from these, so one state is enough for all
        tensors[RANDOM] = torch.get_rng_state()
        if torch.cuda.is_available():
            tensors[RANDOM_CUDA] = torch.cuda.get_rng_state()
    writer = FileSystemWriter(folder / STATE, sync_files=False)
    with _plain_errors():
        save_shares(tensors, storage_writer=writer, no_dist=world.size == 1)
    if world.is_main:
        (folder / STATE_NUMBERS).write_text(json.dumps(asdict(progress)) + "\n", encoding="utf-8")


def moments(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state of each trainable parameter, under ``KIND.NAME OF THE PARAMETER``."""
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    state = optimizer.state_dict()["state"]
    return {f"{key}.{names[index]}": value for index, entry in state.items() for key, value in entry.items()}


def load_state(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, world: World) -> Progress:
    """Restore what :func:`save_state` wrote, with this or another number of processes; the weights are already loaded.

    All processes call this. Raises ValueError if it is missing, or if it is of other parameters.
    """
    if not (folder / STATE).is_dir():
        raise ValueError(f"resume: {folder} holds no training state")
    reader = FileSystemReader(folder / STATE)
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    tensors = {
        name: _place_for(name, stored, parameters, folder)
        for name, stored in reader.read_metadata().state_dict_metadata.items()
        if name != RANDOM_CUDA or torch.cuda.is_available()
    }
    with _plain_errors():
        load_shares(tensors, storage_reader=reader, no_dist=world.size == 1)
    torch.set_rng_state(tensors.pop(RANDOM))
    if RANDOM_CUDA in tensors:
        torch.cuda.set_rng_state(tensors.pop(RANDOM_CUDA))
    numbers = list(parameters)
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        key, _, parameter = name.partition(".")
        state.setdefault(numbers.index(parameter), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    progress = json.loads((folder / STATE_NUMBERS).read_text(encoding="utf-8"))
    return Progress(**progress | {"left_out": LeftOut(**progress["left_out"])})


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Raise what went wrong in a process, in the place of torch's BaseException; no warning for one process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized")
        try:
            yield
        except CheckpointException as error:
            raise next(iter(error.failures.values()))[0] from error


def _place_for(name: str, stored: object, parameters: dict[str, nn.Parameter], folder: Path) -> Tensor:
    """Memory for a stored tensor: divided as its parameter, where it has the parameter's shape."""
    assert isinstance(stored, TensorStorageMetadata)
    if name not in (RANDOM, RANDOM_CUDA):
        parameter = parameters.get(name.partition(".")[2])
        if parameter is None:
            raise ValueError(f"resume: {folder} holds the state of {name.partition('.')[2]}, which is not trained here")
        if stored.size == parameter.shape:
            return torch.empty_like(parameter.detach())
    return torch.empty(stored.size, dtype=stored.properties.dtype, device="cpu")
