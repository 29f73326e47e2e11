"""The machine that is measured on: its name, and how much of it others used meanwhile."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass
from pathlib import Path

import torch

WATCHED = 0.5  # seconds, before anything is timed
IDLE = 0.05  # of all processors: what others may use without a warning


def processor() -> str:
    """The name that the processor gives itself."""
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def device() -> str:
    """As tables name it: the GPU where there is one."""
    return str(torch.cuda.get_device_name()) if torch.cuda.is_available() else f"{processor()} (CPU)"


def threads() -> int:
    """What torch's ops and ours run on."""
    return torch.get_num_threads()


@dataclass(frozen=True)
class Reading:
    """Seconds of processor time until now: `total` that there was, `busy` of it, `own` of this process and children.

    Time that a virtual machine was kept waiting ("steal") counts as busy: it was another's.
    """

    total: float
    busy: float
    own: float

    @classmethod
    def of(cls, stat: str, own: float, ticks: int) -> Reading:
        """
        From the text of /proc/stat, with ``ticks`` a second.

        >>> Reading.of("cpu  300 0 100 500 100 0 0 0 0 0\\ncpu0 ...", own=1.5, ticks=100)
        Reading(total=10.0, busy=4.0, own=1.5)
        """
        user, nice, system, idle, waiting, *rest = (int(field) / ticks for field in stat.split("\n", 1)[0].split()[1:9])
        busy = user + nice + system + sum(rest)
        return cls(busy + idle + waiting, busy, own)

    @classmethod
    def now(cls) -> Reading | None:
        """None where there is no /proc/stat."""
        stat = Path("/proc/stat")
        if not stat.exists():
            return None
        return cls.of(stat.read_text(), sum(os.times()[:4]), os.sysconf("SC_CLK_TCK"))

    def others_since(self, before: Reading) -> float:
        """The share of all processors that others used since ``before``.

        >>> Reading(20.0, 9.0, 4.0).others_since(Reading(10.0, 4.0, 1.0))
        0.2
        """
        others = (self.busy - before.busy) - (self.own - before.own)
        return max(others, 0.0) / max(self.total - before.total, 1e-9)


class Others:
    """What others use of the machine: before timing (looked at when made), and from then on."""

    def __init__(self, seconds: float = WATCHED) -> None:
        first = Reading.now()
        time.sleep(seconds)
        self._begin = Reading.now()
        self.before = None if first is None or self._begin is None else self._begin.others_since(first)

    def since(self) -> float | None:
        now = Reading.now()
        return None if now is None or self._begin is None else now.others_since(self._begin)


def note(before: float | None, during: float | None = None) -> str:
    """One line for the foot of a table; it begins with WARNING where figures mean little.

    >>> note(0.01, 0.02)
    'Others used 1% of the processors before timing, 2% during the run.'
    >>> note(0.5)
    'WARNING: the machine is not idle, figures mean little. Others used 50% of the processors before timing.'
    """
    if before is None:
        return "Whether the machine was idle is not known: it has no /proc/stat."
    text = f"Others used {before:.0%} of the processors before timing"
    text += "." if during is None else f", {during:.0%} during the run."
    busy = max(before, during or 0.0) > IDLE
    return f"WARNING: the machine is not idle, figures mean little. {text}" if busy else text
