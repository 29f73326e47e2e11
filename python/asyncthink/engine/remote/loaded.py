"""A model on servers, and samplers that share the connection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asyncthink.engine.remote.fleet import Fleet
from asyncthink.engine.remote.sampler import RemoteSampler
from asyncthink.engine.remote.tokenizer import FolderTokenizer, model_folder
from asyncthink.protocol.prompts import PromptFormat


@dataclass(frozen=True, slots=True)
class RemoteModel:
    """Servers with a model's tokenizer and prompts; what :class:`asyncthink.engine.loaded.LoadedModel` is here."""

    name: str
    fleet: Fleet
    tokenizer: FolderTokenizer
    prompts: PromptFormat | None  # saved with the model; None: each sampler's default

    @classmethod
    def connect(
        cls, servers: Sequence[str], model: str | Path, *, revision: str | None = None, **connection: Any
    ) -> RemoteModel:
        """The servers of a model whose folder or hub id is ``model``; ``connection`` are :class:`.fleet.Fleet`'s.

        Raises as :class:`.sampler.RemoteSampler` does.
        """
        folder = model_folder(model, revision)
        tokenizer, prompts = FolderTokenizer(folder), PromptFormat.find(folder)
        return cls(Path(model).name, Fleet(servers, **connection), tokenizer, prompts)

    @property
    def parameters(self) -> None:
        """Number of weights, which servers do not tell."""
        return None

    @property
    def machine(self) -> str:
        """Where it runs, for a report of seconds."""
        kinds = sorted({about.kind for about in self.fleet.about.values()})
        return f"{len(self.fleet.replicas.servers)} servers ({', '.join(kinds)})"

    def sampler(self, **options: Any) -> RemoteSampler:
        """A sampler with its own ``mode``, ``pool``, ``context``, ``guide``."""
        stops = self.tokenizer.stop_ids
        return RemoteSampler(self.fleet, self.tokenizer, prompts=self.prompts, stop_ids=stops, **options)

    def close(self) -> None:
        """Cancel what runs, and close the connections."""
        self.fleet.close()
