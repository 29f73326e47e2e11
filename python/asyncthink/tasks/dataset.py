"""Questions with answers from any data set that the package ``datasets`` reads: a file, or a name on the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from asyncthink.tasks.data import Record
from asyncthink.tasks.math import Math
from asyncthink.tasks.query import split_query

#: The reader of ``datasets`` for the ending of a file's name.
READERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
OPTIONS = ("question", "answer", "split", "name", "after")


def load_dataset(spec: str, test: bool = False) -> Math:
    """The task of a data set, ``PATH?question=COLUMN&answer=COLUMN``; a tenth is held out, with ``test`` all is.

    The path is a ``.jsonl``, ``.json``, ``.csv`` or ``.parquet`` file, or a data set's name on the hub. Behind "?", all
    but the path may be left out (``%23`` is "#", ``%26`` is "&"):

    - ``question``, ``answer``: the columns (``question`` and ``answer``);
    - ``split``: of the data set (``train``, which is the whole of a file);
    - ``name``: of a data set's configuration;
    - ``after``: the answer is what follows the last such text, as in ``after=%23%23%23%23`` for GSM8K.

    Answers are graded by their meaning, as those of :class:`.math.Math`. Records with an empty answer are left out with
    a warning.

    Raises ValueError for a file or data set that cannot be read, a column that it lacks, another option, and an answer
    without ``after``; ImportError without the package (extra ``datasets``).
    """
    path, options = split_query(spec)
    for option in options:
        if option not in OPTIONS:
            raise ValueError(f"dataset: expected options {', '.join(OPTIONS)}, got {option!r}")
    columns = {"question": options.get("question", "question"), "answer": options.get("answer", "answer")}
    rows = _rows(path, options.get("name"), options.get("split", "train"))
    for column in columns.values():
        if column not in rows.column_names:
            raise ValueError(f"dataset: {path}: expected a column {column!r}, got {', '.join(rows.column_names)}")
    records: list[Record] = [{name: row[column] for name, column in columns.items()} for row in rows]
    if after := options.get("after"):
        for number, record in enumerate(records, 1):
            record["answer"] = _behind(after, record["answer"], f"{path}, record {number}")
    return Math.of(f"dataset{'-test' if test else ''}:{spec}", Path(path), records, test)


def _rows(path: str, name: str | None, split: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ImportError(f'dataset: {error}: pip install "asyncthink-kernels[datasets]"') from error
    reader = READERS.get(Path(path).suffix)
    if reader is not None and not Path(path).is_file():
        raise ValueError(f"dataset: there is no file {path}")
    try:
        if reader is None:
            return datasets.load_dataset(path, name, split=split)
        return datasets.load_dataset(reader, name, data_files=path, split=split)
    except Exception as error:  # of many kinds, by the reader and the network
        reason = " ".join(str(error.__cause__ or error).split())
        raise ValueError(f"dataset: {path} cannot be read: {type(error).__name__}: {reason:.300}") from error


def _behind(after: str, answer: object, where: str) -> str:
    before, mark, rest = str(answer).rpartition(after)
    if not mark:
        raise ValueError(f"dataset: {where}: expected an answer with {after!r}, got {before or rest!r:.80}")
    return rest.strip()
