"""asyncthink: fork-join decoding for one language model that organizes its own workers.

>>> from asyncthink import ForkJoinSampler, SamplingParams  # doctest: +SKIP
"""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asyncthink.episode.options import Options
from asyncthink.episode.params import SamplingParams
from asyncthink.episode.records import Episode, Event, TokenEvent, Trace
from asyncthink.protocol.parser import Parser
from asyncthink.protocol.prompts import DEFAULT_PROMPTS, PromptFormat

if TYPE_CHECKING:
    from asyncthink.engine.async_engine import AsyncEngine
    from asyncthink.engine.remote.sampler import RemoteSampler
    from asyncthink.engine.sampler import ForkJoinSampler, Thread
    from asyncthink.engine.tools import Tool
    from asyncthink.model.decoder import Decoder
    from asyncthink.tasks import Task

    __version__: str

__all__ = [
    "DEFAULT_PROMPTS",
    "AsyncEngine",
    "Decoder",
    "Episode",
    "Event",
    "ForkJoinSampler",
    "Options",
    "Parser",
    "PromptFormat",
    "RemoteSampler",
    "SamplingParams",
    "Task",
    "Thread",
    "TokenEvent",
    "Tool",
    "Trace",
    "__version__",
    "checkpoint_path",
]

_FROM_SAMPLER = ("ForkJoinSampler", "Thread", "Tool")


def checkpoint_path(name: str = "countdown") -> Path:
    """The folder of a checkpoint that ships with the package. Raises ValueError, with their names, for another one.

    >>> checkpoint_path("countdown").name
    'countdown'
    """
    shipped = Path(__file__).parent / "checkpoints"
    names = sorted(path.parent.name for path in shipped.glob("*/config.json"))
    if name not in names:
        raise ValueError(f"checkpoint: expected one of {', '.join(names) or 'none (none is installed)'}, got {name!r}")
    return shipped / name


def __getattr__(name: str) -> Any:
    # Sampler and decoder import torch and transformers, which takes seconds; records, protocol and view need neither.
    if name in _FROM_SAMPLER:
        from asyncthink.engine import sampler

        return getattr(sampler, name)
    if name == "RemoteSampler":  # needs httpx, an extra
        from asyncthink.engine.remote.sampler import RemoteSampler

        return RemoteSampler
    if name == "AsyncEngine":
        from asyncthink.engine.async_engine import AsyncEngine

        return AsyncEngine
    if name == "Decoder":
        from asyncthink.model.decoder import Decoder

        return Decoder
    if name == "Task":
        from asyncthink.tasks import Task

        return Task
    if name == "__version__":
        return importlib.metadata.version("asyncthink-kernels")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
