"""Functions run in several forked processes that form one gloo group.

The process that forks has imported everything and computed nothing, so that a child is as one that was just started.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def in_processes(size: int, act: Callable[..., Any], *arguments: Any, log: Path | None = None) -> list[int]:
    """``act(*arguments)`` in ``size`` processes; the exit status of each, -9 for a killed one, 1 for one that raised.

    With one process it is a world of one. ``log``: the folder for what each process writes to stderr, ``stderr-RANK``.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = [_start(rank, size, port, act, arguments, log) for rank in range(size)]
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def finished(size: int, act: Callable[..., Any], *arguments: Any) -> None:
    """As :func:`in_processes`; raises SystemExit unless all processes end well."""
    statuses = in_processes(size, act, *arguments)
    if any(statuses):
        raise SystemExit(f"{act.__name__} in {size} processes ended with {statuses}")


def _start(
    rank: int, size: int, port: int, act: Callable[..., Any], arguments: tuple[Any, ...], log: Path | None
) -> int:
    child = os.fork()
    if child:
        return child
    if size > 1:
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"}
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size}
        os.environ |= {name: str(value) for name, value in (place | ranks).items()}
    status = 1
    try:
        if log is not None:
            log.mkdir(parents=True, exist_ok=True)
            os.dup2(os.open(log / f"stderr-{rank}", os.O_WRONLY | os.O_CREAT), 2)
        act(*arguments)
        status = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stderr.flush()
        os._exit(status)
    raise AssertionError
