"""uvicorn around the application: the socket, signals, the orderly end."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn

from asyncthink.engine.async_engine import AsyncEngine
from asyncthink.serve.app import create_app
from asyncthink.serve.logs import log_config
from asyncthink.serve.settings import Settings


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises ValueError, one line, for a port that is taken or a host that is not ours."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"cannot listen on {host} port {port}: {reason}") from None


class _Server(uvicorn.Server):
    """Ends in order at a signal, and at once at the second one; uvicorn's own would then raise the signal again."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._end) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _end(self, number: int, frame: FrameType | None) -> None:
        self.force_exit = self.should_exit
        self.should_exit = True


def serve(
    engine: AsyncEngine,
    settings: Settings,
    sock: socket.socket,
    *,
    drain_seconds: float = 30.0,
    log_level: str = "warning",
    ready: Callable[[uvicorn.Server], None] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT; then answer what was asked, at most for ``drain_seconds``, and close the engine.

    ``ready`` is called with the server, which another thread may end by its ``should_exit``, before it starts.
    """
    config = uvicorn.Config(
        create_app(engine, settings),
        lifespan="off",
        log_config=log_config(log_level),
        access_log=log_level == "info",
        timeout_graceful_shutdown=max(1, round(drain_seconds)),
        timeout_keep_alive=30,
        server_header=False,
    )
    server = _Server(config)
    if ready is not None:
        ready(server)
    try:
        server.run(sockets=[sock])
    finally:
        engine.close(drain=False)
