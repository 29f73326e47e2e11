"""What every request passes first: the host that it names, the page it comes from, the key, the size of its body."""

from __future__ import annotations

import contextlib
import hmac

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from asyncthink.serve.errors import ApiError, answer
from asyncthink.serve.events import ClientGoneError
from asyncthink.serve.hosts import is_own
from asyncthink.serve.origins import SAFE, foreign_page
from asyncthink.serve.settings import Settings

#: Open without a key: the page asks for the key itself, and a supervisor has none.
OPEN = frozenset({"/", "/health"})


class Guard:
    """An ASGI application around another one: 401 without the key, 413 for a body beyond the limit.

    Where there is no key, 403 for a Host that is not the server's (:mod:`.hosts`; ``/health`` answers to any), and for
    what a page of another site has a browser send (:mod:`.origins`), unless the method changes nothing.
    """

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
        if (host := self._strange_host(scope)) is not None:
            error = ApiError(403, f"host: expected an address, localhost or a name of --allow-host, got {host[:200]!r}")
            await answer(error)(scope, receive, send)
            return
        if (page := self._foreign_page(scope)) is not None:
            told = f"origin: expected a page of this server, or --api-key, got a request of {page[:200]!r}"
            await answer(ApiError(403, told))(scope, receive, send)
            return
        if not length.isdigit() or int(length) > most:
            await answer(too_large)(scope, receive, send)
            return
        seen, begun, refused = 0, False, False

        async def counted() -> Message:
            nonlocal seen, refused
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > most and not begun and not refused:
                refused = True  # from here on, only this answer is sent
                await answer(too_large)(scope, receive, send)
            if refused:
                raise ClientGoneError
            return message

        async def sent(message: Message) -> None:
            nonlocal begun
            begun = True
            if not refused:
                await send(message)

        with contextlib.suppress(ClientGoneError):
            await self._app(scope, counted, sent)

    def _strange_host(self, scope: Scope) -> str | None:
        """A host that the request names and that is not ours; a request without any comes from no browser."""
        if self._settings.api_key is not None or scope["path"] == "/health":
            return None
        given = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        return next((host for host in given if not is_own(host, self._settings.hosts)), None)

    def _foreign_page(self, scope: Scope) -> str | None:
        """The page of another site that would have something changed; no page knows a key."""
        if self._settings.api_key is not None or scope["method"] in SAFE:
            return None
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        site, origin, host = (headers.get(name) for name in (b"sec-fetch-site", b"origin", b"host"))
        return foreign_page(site, origin, host, self._settings.hosts)

    def _allowed(self, given: bytes) -> bool:
        """Compares in constant time."""
        key = self._settings.api_key
        return key is None or hmac.compare_digest(given, b"Bearer " + key.encode())
