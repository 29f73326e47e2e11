"""The files of a synthesis: what was kept and what was rejected, a line each, written as soon as it is known."""

from __future__ import annotations

import fcntl
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from asyncthink.train.traces import WrittenTrace, read_traces, to_line


@dataclass(slots=True)
class Totals:
    """What was asked for so far, in this run and in those that it resumes.

    ``unpriced`` counts the replies whose server told no usage. ``rejected`` counts replies by reason.
    """

    kept: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    unpriced: int = 0

    def add(self, usage: Mapping[str, int] | None) -> None:
        """Count the usage of a reply."""
        if usage is None:
            self.unpriced += 1
        else:
            self.prompt_tokens += usage["prompt_tokens"]
            self.completion_tokens += usage["completion_tokens"]

    def cost(self, price_in: float, price_out: float) -> float:
        """At these prices of a million tokens read and written.

        >>> Totals(prompt_tokens=2_000_000, completion_tokens=500_000).cost(1.25, 10.0)
        7.5
        """
        return (self.prompt_tokens * price_in + self.completion_tokens * price_out) / 1e6


class Journal:
    """Traces in ``path``, rejected replies beside it (:func:`rejected_path`). Open it with :func:`journal`."""

    def __init__(self, traces: IO[bytes], rejected: IO[bytes], totals: Totals) -> None:
        self.totals = totals
        self.done: set[str] = set()
        self.attempts: Counter[str] = Counter()  # rejected ones, by the id of the trace they were for
        self._traces, self._rejected = traces, rejected

    def keep(self, trace: WrittenTrace) -> None:
        """Append a trace; it is on the disk when this returns. Raises ValueError for an id that is there already."""
        if trace.id in self.done:
            raise ValueError(f"id: expected a new one, got {trace.id!r}")
        _append(self._traces, to_line(trace))
        self._count(trace)

    def reject(self, trace_id: str, reason: str, **more: Any) -> None:
        """Append a rejected reply: its ``reason``, ``usage`` and whatever else helps to see why."""
        record = {"id": trace_id, "reason": reason, **more}
        _append(self._rejected, json.dumps(record, ensure_ascii=False) + "\n")
        self._count_rejected(record)

    def _count(self, trace: WrittenTrace) -> None:
        self.done.add(trace.id)
        self.totals.kept += 1
        self.totals.add(trace.source.get("usage"))

    def _count_rejected(self, record: Mapping[str, Any]) -> None:
        self.attempts[record["id"]] += 1
        self.totals.rejected[record["reason"]] += 1
        self.totals.add(record.get("usage"))

    def read(self, traces: Path, rejected: Path) -> None:
        """Count what earlier runs wrote."""
        if traces.stat().st_size:
            for trace in read_traces(traces):
                self._count(trace)
        for line in rejected.read_text(encoding="utf-8").split("\n"):
            if line:
                self._count_rejected(json.loads(line))


@contextmanager
def journal(path: Path) -> Iterator[Journal]:
    """Open the files of a synthesis, new or to go on. A line that was cut off in the middle is removed.

    Raises ValueError for a file that holds no traces and while another process writes it, OSError for one that cannot
    be written.
    """
    with path.open("ab+") as traces, rejected_path(path).open("ab+") as rejected:
        try:
            fcntl.flock(traces, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"out: expected a file that nobody writes, another process writes {path}") from None
        for file in (traces, rejected):
            _mend(file)
        entries = Journal(traces, rejected, Totals())
        entries.read(path, rejected_path(path))
        yield entries


def rejected_path(path: Path) -> Path:
    """Where the rejected replies are.

    >>> str(rejected_path(Path("runs/traces.jsonl")))
    'runs/traces.rejected.jsonl'
    """
    return path.with_suffix(f".rejected{path.suffix}")


def _mend(file: IO[bytes]) -> None:
    """Remove what stands behind the last line feed: the line at which a process was killed."""
    file.seek(0)
    content = file.read()
    file.truncate(content.rfind(b"\n") + 1)


def _append(file: IO[bytes], line: str) -> None:
    file.write(line.encode())
    file.flush()
    os.fsync(file.fileno())
