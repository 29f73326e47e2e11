"""Server-sent events, and work that ends when its client goes away."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, Awaitable, Mapping
from typing import Any, TypeVar

from fastapi import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from asyncthink.serve.errors import answer, api_error, detail

T = TypeVar("T")
_encode = json.JSONEncoder(allow_nan=False).encode  # json.dumps with an option makes an encoder for each call


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
    return b"".join(b"data: %s\n\n" % _encode(value).encode("ascii") for value in values)


class EventStream(Response):
    """Pieces of an event stream, sent as they come. A client that goes away ends the iterator at once.

    An exception before the first piece is an ordinary answer with its status; a later one becomes an event with an
    ``error``. ``seconds`` is the most that the whole may take.
    """

    media_type = "text/event-stream"

    def __init__(self, pieces: AsyncGenerator[bytes], headers: Mapping[str, str], *, seconds: float) -> None:
        super().__init__(None, 200, {"cache-control": "no-cache", "x-accel-buffering": "no", **headers})
        del self.headers["content-length"]
        self._pieces, self._seconds = pieces, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.ensure_future(self._send(scope, receive, send))
        gone = asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait((sending, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sending, gone):
                task.cancel()
            await asyncio.gather(sending, gone, return_exceptions=True)

    async def _send(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False
        try:
            async with asyncio.timeout(self._seconds), contextlib.aclosing(self._pieces):
                async for piece in self._pieces:
                    if not begun:
                        begun = True
                        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
        except Exception as error:
            if not begun:
                await answer(api_error(error))(scope, receive, send)
                return
            last = sse(detail(api_error(error))) + b"data: [DONE]\n\n"
            await send({"type": "http.response.body", "body": last, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
