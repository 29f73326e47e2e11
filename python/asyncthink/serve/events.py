"""Server-sent events, and work that ends when its client goes away."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Mapping
from typing import Any, TypeVar

from fastapi import Request
from starlette.background import BackgroundTask
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from asyncthink.serve.errors import api_error, detail

T = TypeVar("T")


class ClientGoneError(Exception):
    """Nobody waits for the answer any more."""


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def while_connected(request: Request, work: Awaitable[T]) -> T:
    """``work``, cancelled as soon as the client goes away: ClientGoneError."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request.receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError
        return task.result()
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


def sse(*values: Any) -> bytes:
    """Values as one piece of an event stream.

    >>> sse({"a": 1})
    b'data: {"a": 1}\\n\\n'
    """
    return b"".join(b"data: %s\n\n" % json.dumps(value, allow_nan=False).encode("ascii") for value in values)


class EventStream(Response):
    """Pieces of an event stream, sent as they come. A client that goes away ends the iterator at once.

    An exception of the iterator becomes an event with an ``error``, because the status is sent already.
    """

    media_type = "text/event-stream"

    def __init__(self, pieces: AsyncIterator[bytes], headers: Mapping[str, str], *, seconds: float) -> None:
        self.status_code, self.background = 200, None
        self._pieces, self._seconds = pieces, seconds
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no", **headers})

    background: BackgroundTask | None

    def render(self, content: Any) -> bytes:
        return b""

    def init_headers(self, headers: Mapping[str, str] | None = None) -> None:
        given = {**(headers or {}), "content-type": f"{self.media_type}; charset=utf-8"}
        self.raw_headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in given.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        sending, gone = asyncio.ensure_future(self._send(send)), asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait((sending, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sending, gone):
                task.cancel()
            await asyncio.gather(sending, gone, return_exceptions=True)

    async def _send(self, send: Send) -> None:
        async with contextlib.AsyncExitStack() as stack:
            if hasattr(self._pieces, "aclose"):
                stack.push_async_callback(self._pieces.aclose)
            try:
                async with asyncio.timeout(self._seconds):
                    async for piece in self._pieces:
                        await send({"type": "http.response.body", "body": piece, "more_body": True})
            except Exception as error:
                body = sse(detail(api_error(error))) + b"data: [DONE]\n\n"
                await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
