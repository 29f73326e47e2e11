"""A server on a free port in a thread of the test."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
import uvicorn

from asyncthink.engine.async_engine import AsyncEngine
from asyncthink.engine.sampler import ForkJoinSampler
from asyncthink.serve.server import listen, serve
from asyncthink.serve.settings import Settings


class Served:
    """A running server: its address, its engine, and a client of it."""

    def __init__(self, url: str, engine: AsyncEngine, client: httpx.Client, server: uvicorn.Server) -> None:
        self.url, self.engine, self.client, self.server = url, engine, client, server

    def post(self, path: str, /, **body: object) -> httpx.Response:
        return self.client.post(path, json=body)


@contextmanager
def served(
    sampler: ForkJoinSampler,
    settings: Settings | None = None,
    *,
    warm_up: int = 0,
    progress: Callable[[str], None] | None = None,
    **options: object,
) -> Iterator[Served]:
    """Serve a sampler; when the block is left, the server has ended and no page is held."""
    settings = settings or Settings("tiny")
    engine = AsyncEngine(sampler, max_waiting=settings.limits.waiting, warm_up=warm_up, progress=progress)
    servers: list[uvicorn.Server] = []
    with listen("127.0.0.1", 0) as sock:
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        given = {"drain_seconds": 5.0, "ready": servers.append, **options}
        thread = threading.Thread(target=serve, args=(engine, settings, sock), kwargs=given)
        thread.start()
        key = {"authorization": f"Bearer {settings.api_key}"} if settings.api_key else {}
        try:
            with httpx.Client(base_url=url, headers=key, timeout=30) as client:
                yield Served(url, engine, client, servers[0] if servers else _wait(servers))
        finally:
            while not servers:
                thread.join(0.01)
            servers[0].should_exit = True
            thread.join()
    assert sampler.cache.used_pages == 0
    sampler.cache.check()


def _wait(servers: list[uvicorn.Server]) -> uvicorn.Server:
    while not servers:
        threading.Event().wait(0.001)
    return servers[0]
