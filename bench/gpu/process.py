"""A command with a log and a deadline, in a process group that can be ended as a whole."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]


class Process:
    """Started at once; its output goes to `log`."""

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        self.log = log
        self.start = time.monotonic()
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "ab") as file:
            file.write(f"$ {' '.join(command)}\n".encode())
            file.flush()
            self._process = subprocess.Popen(
                command, cwd=ROOT, env={**os.environ, **environment}, stdin=subprocess.DEVNULL,
                stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    @property
    def code(self) -> int | None:
        """The exit code; None while it runs."""
        return self._process.poll()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.start

    def wait(self, deadline: float) -> int | None:
        """The exit code; None where it was still running at `deadline` (time.monotonic) and was ended."""
        try:
            return self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.end()
            return None

    def end(self) -> None:
        """End it and all that it started."""
        if self.code is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    @property
    def last_line(self) -> str:
        """The last line of its log that says anything."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return next((line.strip("= \t") for line in reversed(lines) if line.strip("= \t")), "")[:200]
