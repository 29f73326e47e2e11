"""Where in its stream of training data a run begins: a run on the weights of another one goes on behind it.

The data of a step is a function of the seed and a number in the stream. A run that began at 0 again on weights which an
earlier run trained with the same seed would only repeat that run's questions.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asyncthink.protocol.prompts import FILE_NAME

KEY = "stream"  # in asyncthink.json: {kind: {"start": first number of the run, "next": first one not yet used}}


@dataclass(frozen=True, slots=True)
class Stream:
    """One run's place in the stream of its ``kind`` ("sft" or "grpo"), and the ``others`` of its weights.

    Step k of the run uses number ``start + k`` (sft: its batches, ``start + k * batches + ...``).

    >>> Stream("grpo", 300, {"sft": {"start": 0, "next": 9000}}).entry(7)
    {'stream': {'sft': {'start': 0, 'next': 9000}, 'grpo': {'start': 300, 'next': 307}}}
    """

    kind: str
    start: int
    others: dict[str, dict[str, int]]

    @classmethod
    def of(cls, kind: str, model: str | None, resumed: Path | None) -> Stream:
        """The place of a run that begins with ``model`` (folder, hub id or None), or is resumed from a checkpoint."""
        known = dict(_read(Path(model) if resumed is None and model is not None else resumed))
        own = known.pop(kind, {})
        return cls(kind, own.get("next" if resumed is None else "start", 0), known)

    def entry(self, used: int) -> dict[str, Any]:
        """The entry of ``asyncthink.json`` after ``used`` numbers."""
        return {KEY: self.others | {self.kind: {"start": self.start, "next": self.start + used}}}


def _read(folder: Path | None) -> dict[str, dict[str, int]]:
    file = folder / FILE_NAME if folder is not None else None
    if file is None or not file.is_file():
        return {}
    stream: dict[str, dict[str, int]] = json.loads(file.read_text(encoding="utf-8")).get(KEY, {})
    return stream
