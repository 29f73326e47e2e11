"""What every request passes first: the key, the size of its body, and headers of every answer."""

from __future__ import annotations

import hmac

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from asyncthink.serve.errors import ApiError, answer
from asyncthink.serve.events import ClientGoneError
from asyncthink.serve.settings import Settings

#: Open without a key: the page asks for the key itself, and a supervisor has none.
OPEN = frozenset({"/", "/health"})


class _TooLargeError(Exception):
    pass


class Guard:
    """An ASGI application around another one: 401 without the key, 413 for a body beyond the limit."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app, self._settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        most = self._settings.limits.body_bytes
        too_large = ApiError(413, f"body: expected at most {most} bytes")
        length = headers.get(b"content-length", b"0")
        if scope["path"] not in OPEN and not self._allowed(headers.get(b"authorization", b"")):
            error = ApiError(401, "expected the server's API key as 'Authorization: Bearer ...'")
            await answer(error)(scope, receive, send)
            return
        if not length.isdigit() or int(length) > most:
            await answer(too_large)(scope, receive, send)
            return
        seen, begun = 0, False

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > most:
                raise _TooLargeError
            return message

        async def sent(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, counted, sent)
        except ClientGoneError:
            pass
        except _TooLargeError:
            if not begun:
                await answer(too_large)(scope, receive, send)

    def _allowed(self, given: bytes) -> bool:
        """Compares in constant time."""
        key = self._settings.api_key
        return key is None or hmac.compare_digest(given, b"Bearer " + key.encode())
