"""What a run found, as JSON: `<gpu>-<date>.json`. Times in seconds, bytes in bytes. No torch.

{"schema": "gpu-bench/1", "device": {...}, "versions": {...}, "date": "2026-01-31", "seconds": 1.0,
 "copies": [Copy], "ops": [Op], "cells": [Row], "skipped": {cell: reason}, "stages": [Stage]}
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from .spread import Spread

SCHEMA = "gpu-bench/1"
WRONG = 4  # exit code of a run in which one of our own ops failed


@dataclass(frozen=True)
class Copy:
    """A device-to-device copy; `bytes` are those read and those written."""

    bytes: int
    flushed: Spread

    @property
    def bandwidth(self) -> float:
        return self.bytes / self.flushed.median


@dataclass(frozen=True)
class Op:
    """One of our ops that write K and V. `reason`: why it was not captured, or, without times, why not measured."""

    name: str
    detail: str
    bytes: int
    reason: str | None = None
    flushed: Spread | None = None
    warm: Spread | None = None


@dataclass
class Entry:
    """Who ran in a cell. `reason`: why it was not captured into a graph, or, without times, why it was not measured."""

    name: str
    ours: bool
    reason: str | None = None
    failed: bool = False  # it ran and raised, or its result was wrong
    detail: str = ""
    error: float | None = None  # largest relative error of a row
    first: float | None = None  # of the first plan and run, which may have compiled
    plan: Spread | None = None  # planning on the host, once a step
    flushed: Spread | None = None
    warm: Spread | None = None
    host: Spread | None = None  # end to end without a graph, call after call


@dataclass
class Row:
    """A cell of the grid. `planning`: our own, by kind."""

    name: str
    dtype: str
    rows: int
    unique_tokens: int
    bytes: int
    operations: int
    chunk: int
    entries: list[Entry] = field(default_factory=list)
    planning: dict[str, Spread] = field(default_factory=dict)

    def entry(self, name: str) -> Entry | None:
        return next((each for each in self.entries if each.name == name), None)

    @property
    def best_peer(self) -> Entry | None:
        """The fastest that is not ours, L2 flushed."""
        timed = [(each.flushed.median, each) for each in self.entries if not each.ours and each.flushed]
        return min(timed, key=lambda pair: pair[0])[1] if timed else None


@dataclass
class Stage:
    """A part of the whole: `note` says what it came to, `log` which file holds its output."""

    name: str
    ok: bool
    seconds: float
    note: str = ""
    log: str = ""


@dataclass
class Record:
    """All of a run."""

    device: dict[str, Any]
    versions: dict[str, str]
    date: str
    seconds: float = 0.0
    copies: list[Copy] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    cells: list[Row] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    stages: list[Stage] = field(default_factory=list)
    schema: str = SCHEMA

    @property
    def on_gpu(self) -> bool:
        return str(self.device["type"]) == "cuda"

    @property
    def file_name(self) -> str:
        slug = re.sub(r"[^a-z0-9]+", "-", str(self.device["name"]).lower()).strip("-")
        return f"{slug}-{self.date}.json"

    @property
    def copy_bandwidth(self) -> float | None:
        """Bytes read and written a second by the largest copy: what a smaller one writes may stay in L2."""
        return max(self.copies, key=lambda each: each.bytes).bandwidth if self.copies else None

    def save(self, path: Path) -> None:
        """The file is either the old one or the new one, whatever happens."""
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.part")
        part.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        os.replace(part, path)

    @classmethod
    def load(cls, path: Path) -> Record:
        """ValueError where the file is no record of this schema."""
        data = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            raise ValueError(f"{path}: expected schema {SCHEMA!r}")
        record: Record = _made(cls, data)
        return record


def records(folder: Path) -> list[tuple[Path, Record]]:
    """All records of a folder, the newest of each device, oldest first. One without a cell replaces none that has."""
    newest: dict[tuple[str, bool], tuple[Path, Record]] = {}
    for path in sorted(folder.glob("*.json")):
        if f'"schema": "{SCHEMA}"' not in path.read_text(encoding="utf-8"):
            continue
        record = Record.load(path)
        key = str(record.device["name"]), bool(record.cells)
        if key not in newest or newest[key][1].date <= record.date:
            newest[key] = (path, record)
    return sorted(newest.values(), key=lambda pair: pair[1].date)


def _made(kind: Any, value: Any) -> Any:
    """`value`, as json gives it, as what the annotation `kind` says."""
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        return kind(**{each.name: _made(hints[each.name], value[each.name]) for each in fields(kind)})  # type: ignore
    origin, inner = get_origin(kind), get_args(kind)
    if origin is UnionType:
        wanted = next(each for each in inner if each is not type(None))
        return None if value is None else _made(wanted, value)
    if origin is list:
        return [_made(inner[0], each) for each in value]
    if origin is dict:
        return {key: _made(inner[1], each) for key, each in value.items()}
    return value
