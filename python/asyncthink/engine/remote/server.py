"""One server: what it is, and a request to it as a stream of tokens. Nothing is tried twice here."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncGenerator
from typing import Any, NamedTuple

import httpx

from asyncthink.engine.remote.answers import check, named
from asyncthink.engine.remote.dialects import DIALECTS
from asyncthink.engine.remote.errors import BrokenError, RefusedError
from asyncthink.engine.remote.sse import payloads
from asyncthink.engine.remote.transport import Ask, Chunk


class About(NamedTuple):
    """What a server says of itself: its kind, its model's name, and the positions of a context (None: not told)."""

    kind: str
    model: str
    max_length: int | None


class Server:
    """A server at ``url``, by a client that many servers may share.

    Args:
        url: its address, with or without ``/v1``.
        client: sends the requests; its time-outs hold.
        kind: "asyncthink", "vllm" or "sglang"; None: what ``/v1/models`` says.
        model: the model's name; None: the server's first one.
    """

    streams = True

    def __init__(
        self, url: str, client: httpx.AsyncClient, *, kind: str | None = None, model: str | None = None
    ) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self._client, self._kind, self._model = client, kind, model
        self._about: About | None = None

    async def about(self) -> About:
        """What it is, asked once. Raises BrokenError if it does not answer, RefusedError for an unknown kind."""
        if self._about is None:
            with named(self.url):
                response = await self._client.get(f"{self.url}/v1/models")
                await check(response)
                self._about = self._told(response.json())
        return self._about

    def forget(self) -> None:
        """Ask what it is once more: another program may answer there now."""
        self._about = None

    async def draw(self, ask: Ask) -> AsyncGenerator[Chunk, None]:
        """See :class:`.transport.Transport`. Raises BrokenError, RefusedError; closing it closes the connection."""
        about = await self.about()
        dialect = DIALECTS[about.kind]
        if ask.rule is not None and not dialect.guides:
            raise RefusedError(f"guide: expected 'off' on {about.kind}, which knows no masks of ours ({self.url})")
        reader = dialect.reader()
        with named(self.url):
            body = dialect.body(ask, about.model)
            async with self._client.stream("POST", f"{self.url}{dialect.path}", json=body) as response:
                await check(response)
                async with contextlib.aclosing(payloads(response.aiter_bytes())) as events:
                    async for event in events:  # to the end, so that the connection can be used again
                        if event == b"[DONE]":
                            continue
                        if (chunk := reader.read(json.loads(event))) is not None:
                            yield chunk
            if not reader.over:
                raise BrokenError("the answer ended without its end")

    def _told(self, models: dict[str, Any]) -> About:
        known = {entry["id"]: entry for entry in models["data"]}
        if self._model is not None and self._model not in known:
            raise RefusedError(f"model: expected one of {', '.join(known)}, got {self._model!r}")
        entry = known[self._model] if self._model is not None else models["data"][0]
        kind = self._kind or entry.get("owned_by")
        if kind not in DIALECTS:
            raise RefusedError(f"expected a server of kind {', '.join(DIALECTS)}, got {kind!r}")
        return About(kind, entry["id"], entry.get("max_model_len"))
