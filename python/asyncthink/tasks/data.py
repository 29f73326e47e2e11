"""Records from local files, split into those of training and those held out."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from asyncthink.tasks.split import in_held_out_share

Item = TypeVar("Item")
Record = dict[str, Any]


def read_records(path: Path) -> list[Record]:
    """The records of a ``.jsonl``, ``.json`` (one array) or ``.parquet`` file, in order, all in memory.

    Raises ValueError for a missing or empty file, another file type or a line that is not a JSON object, and
    ImportError for parquet without pyarrow.
    """
    readers = {".jsonl": _read_lines, ".json": _read_array, ".parquet": _read_parquet}
    if path.suffix not in readers:
        raise ValueError(f"data: expected a file that ends in {', '.join(readers)}, got {path}")
    if not path.is_file():
        raise ValueError(f"data: there is no file {path}")
    records = readers[path.suffix](path)
    if not records:
        raise ValueError(f"data: {path} holds no records")
    for number, record in enumerate(records, 1):
        if not isinstance(record, dict):
            raise ValueError(f"data: {path}, record {number}: expected an object with fields, got {record!r:.80}")
    return records


def _read_lines(path: Path) -> list[Record]:
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if line.strip():
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError as error:
                raise ValueError(f"data: {path}, line {number}: expected JSON, got {line!r:.80} ({error})") from None
    return records


def _read_array(path: Path) -> list[Record]:
    try:
        records = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"data: {path}: expected JSON ({error})") from None
    if not isinstance(records, list):
        raise ValueError(f"data: {path}: expected an array of records, got {type(records).__name__}")
    return records


def _read_parquet(path: Path) -> list[Record]:
    try:
        from pyarrow import ArrowInvalid
        from pyarrow.parquet import read_table
    except ImportError as error:
        raise ImportError('parquet needs pyarrow: pip install "asyncthink-kernels[train]"') from error
    try:
        records: list[Record] = read_table(path).to_pylist()
    except ArrowInvalid as error:
        raise ValueError(f"data: {path}: expected parquet ({error})") from None
    return records


def field_of(record: Record, names: Iterable[str], where: str) -> Any:
    """The value of the first of ``names`` that the record has, ignoring case. Raises ValueError if it has none."""
    known = {key.lower(): value for key, value in record.items()}
    for name in names:
        if name in known:
            return known[name]
    raise ValueError(f"data: {where}: expected a field {' or '.join(names)}, got {', '.join(record) or 'none'}")


@dataclass(frozen=True, slots=True)
class Split(Generic[Item]):
    """The different items of a file: those of training, and those that training never sees."""

    path: Path
    training: tuple[Item, ...]
    held_out: tuple[Item, ...]

    @classmethod
    def of(cls, path: Path, items: Iterable[Item], name_of: Callable[[Item], str], test: bool) -> Split[Item]:
        """Split by the hash of each item's name; of equal names the first is kept. ``test`` holds out every item."""
        by_name: dict[str, Item] = {}
        for item in items:
            by_name.setdefault(name_of(item), item)
        held_out = {name for name in by_name if test or in_held_out_share(name)}
        training = tuple(item for name, item in by_name.items() if name not in held_out)
        return cls(path, training, tuple(item for name, item in by_name.items() if name in held_out))

    def pick(self, seed: int, held_out: bool) -> Item:
        """Item number ``seed``, modulo the number of items. Raises ValueError if there are none."""
        items = self.held_out if held_out else self.training
        if not items:
            raise ValueError(f"data: {self.path} has no {'held-out' if held_out else 'training'} records")
        return items[seed % len(items)]
